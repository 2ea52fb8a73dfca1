"""Rows: what earlier versions made goes, what this export makes comes, and what keeps its meaning keeps its id."""

from __future__ import annotations

import polars as pl

from omop_schema import cdm as cdm_schema
from omop_schema.cdm import polars_schema, primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.warehouse.copying import copy_frame, read_frame, temporary_table
from pipeline.warehouse.ids import ENTITY_TABLES, LINKS, reserve
from pipeline.warehouse.publication.context import Publication

__all__ = ["entities", "events", "remove_former_rows", "remove_unused_locations"]


def remove_former_rows(p: Publication) -> None:
    """Delete what earlier versions of the changed resources made; remember event ids by meaning for reuse."""
    p.connection.execute(
        "CREATE TEMP TABLE former ON COMMIT DROP AS"
        " SELECT surrogate_id FROM pg_temp.changed JOIN resource_state USING (surrogate_id)"
    )
    row = p.connection.execute("SELECT count(*) FROM pg_temp.former").fetchone()
    if not row or not row[0]:
        return
    p.connection.execute("ANALYZE pg_temp.former")
    for table in LINEAGE_TABLES:
        if table not in ENTITY_TABLES:
            _remove_events(p, table)
    for table in reversed(ENTITY_TABLES):
        _remove_entities(p, table)


def _remove_events(p: Publication, table: str) -> None:
    lineage, own = lineage_table_name(table), primary_key(table) or "person_id"
    p.old_rows[table] = read_frame(
        p.connection,
        f"SELECT surrogate_id, row_key, row_id FROM {lineage} JOIN pg_temp.former USING (surrogate_id)",
        {"surrogate_id": pl.Int64, "row_key": pl.Int64, "row_id": pl.Int64},
    )
    if p.old_rows[table].is_empty():
        return
    deleted = p.connection.execute(
        f"DELETE FROM {p.cdm}.{table} AS row USING {lineage} AS lineage, pg_temp.former AS former"
        f" WHERE lineage.surrogate_id = former.surrogate_id AND row.{own} = lineage.row_id"
    )
    p.report.rows_deleted[table] += deleted.rowcount
    p.connection.execute(
        f"DELETE FROM {lineage} AS lineage USING pg_temp.former AS former"
        " WHERE lineage.surrogate_id = former.surrogate_id"
    )


def _remove_entities(p: Publication, table: str) -> None:
    """Rows whose resource no longer makes one (entered in error, cancelled); links to them become pending."""
    lineage, own = lineage_table_name(table), primary_key(table)
    if table == "location":  # rows by content, shared: see _remove_unused_locations
        p.connection.execute(
            f"CREATE TEMP TABLE left_locations ON COMMIT DROP AS SELECT row_id FROM {lineage}"
            " JOIN pg_temp.former USING (surrogate_id)"
        )
        p.connection.execute(
            f"DELETE FROM {lineage} AS lineage USING pg_temp.former AS former"
            " WHERE lineage.surrogate_id = former.surrogate_id"
        )
        return
    remade = p.taken(table).select("surrogate_id").unique()
    temporary_table(p.connection, f"remade_{table}", remade)
    p.connection.execute(
        f"CREATE TEMP TABLE removed_{table} ON COMMIT DROP AS"
        f" SELECT lineage.surrogate_id, lineage.row_id FROM {lineage} AS lineage"
        " JOIN pg_temp.former USING (surrogate_id)"
        f" WHERE NOT EXISTS (SELECT FROM pg_temp.remade_{table} AS remade"
        " WHERE remade.surrogate_id = lineage.surrogate_id)"
    )
    row = p.connection.execute(f"SELECT count(*) FROM pg_temp.removed_{table}").fetchone()
    if row and row[0]:
        _unlink(p, table)
        deleted = p.connection.execute(
            f"DELETE FROM {p.cdm}.{table} USING pg_temp.removed_{table} AS removed WHERE {own} = removed.row_id"
        )
        p.report.rows_deleted[table] += deleted.rowcount
    p.connection.execute(
        f"DELETE FROM {lineage} AS lineage USING pg_temp.former AS former"
        " WHERE lineage.surrogate_id = former.surrogate_id"
    )


def _unlink(p: Publication, table: str) -> None:
    for column, other in _links_to(table):
        own = primary_key(other) or "person_id"
        p.connection.execute(
            f"INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
            f" SELECT DISTINCT lineage.surrogate_id, '{column}', removed.surrogate_id, 'pending'"
            f" FROM {p.cdm}.{other} AS row JOIN pg_temp.removed_{table} AS removed ON row.{column} = removed.row_id"
            f" JOIN {lineage_table_name(other)} AS lineage ON lineage.row_id = row.{own}"
            " ON CONFLICT DO NOTHING"
        )
        p.connection.execute(
            f"UPDATE {p.cdm}.{other} AS row SET {column} = NULL"
            f" FROM pg_temp.removed_{table} AS removed WHERE row.{column} = removed.row_id"
        )


def entities(p: Publication, table: str) -> None:
    rows = p.taken(table)
    own_id = primary_key(table)
    assert own_id is not None, "entity tables have ids"
    key = "row_key" if table == "location" else "surrogate_id"
    mine, new = p.ids.assign(table, rows[key], _referred_to(p, table))
    if rows.is_empty():
        return
    links = [column for column in rows.columns if column in LINKS and column != own_id]
    _note_pending(p, rows, links, table)
    rows = p.ids.linked(rows, links)
    rows = rows.join(mine.rename({"surrogate_id": key, "row_id": "own_row_id"}), on=key, maintain_order="left")
    distinct = rows.unique("own_row_id", keep="first", maintain_order=True)
    distinct = distinct.with_columns(pl.col("own_row_id").alias(own_id))
    columns = list(polars_schema(table))
    is_new = pl.col(key).is_in(new.implode())
    p.report.rows_inserted[table] += copy_frame(
        p.connection, f"{p.cdm}.{table}", distinct.filter(is_new).select(columns)
    )
    _update(p, table, own_id, distinct.filter(~is_new).select(columns))
    _lineage(p, table, rows.select("surrogate_id", "row_key", pl.col("own_row_id").alias("row_id")))


def _update(p: Publication, table: str, own_id: str, rows: pl.DataFrame) -> None:
    """Rows that stay under their id: only those that differ are written."""
    if rows.is_empty():
        return
    temporary = f"updated_{table}"
    p.connection.execute(f"CREATE TEMP TABLE {temporary} ON COMMIT DROP AS SELECT * FROM {p.cdm}.{table} WITH NO DATA")
    copy_frame(p.connection, f"pg_temp.{temporary}", rows)
    columns = [name for name in rows.columns if name != own_id]
    listed = ", ".join(columns)
    updated = p.connection.execute(
        f"UPDATE {p.cdm}.{table} AS row SET ({listed}) = ROW({', '.join(f'new.{name}' for name in columns)})"
        f" FROM pg_temp.{temporary} AS new WHERE row.{own_id} = new.{own_id}"
        f" AND ROW({', '.join(f'row.{name}' for name in columns)})"
        f" IS DISTINCT FROM ROW({', '.join(f'new.{name}' for name in columns)})"
    )
    p.report.rows_deleted[table] += updated.rowcount
    p.report.rows_inserted[table] += updated.rowcount


def _referred_to(p: Publication, table: str) -> list[pl.Series]:
    """Distinct surrogate ids by which staged rows refer to an entity table."""
    return [
        p.staged.scan(other)
        .select(pl.col(column).alias("surrogate_id"))
        .drop_nulls()
        .unique()
        .collect()["surrogate_id"]
        for other in p.staged.kinds()
        if other in LINEAGE_TABLES and other != table
        for column, target in LINKS.items()
        if target == table and column in polars_schema(other)
    ]


def events(p: Publication, table: str) -> None:
    own_id = primary_key(table)
    links = [column for column in polars_schema(table) if column in LINKS]
    old = p.old_rows.get(table)
    for part in p.staged.frames(table):
        rows = p.loaded(part)
        if rows.is_empty():
            continue
        _note_pending(p, rows, [column for column in links if column != "person_id"], table)
        rows = _with_row_ids(p, p.ids.linked(rows, links), table, old)
        if own_id:
            rows = rows.with_columns(pl.col("row_id").alias(own_id))
        p.report.rows_inserted[table] += copy_frame(
            p.connection, f"{p.cdm}.{table}", rows.select(list(polars_schema(table)))
        )
        _lineage(p, table, rows.select("surrogate_id", "row_key", "row_id"))


def _with_row_ids(p: Publication, rows: pl.DataFrame, table: str, old: pl.DataFrame | None) -> pl.DataFrame:
    """Adds row_id: the former id of a row of the same meaning, else a new one."""
    if primary_key(table) is None:
        return rows.with_columns(pl.col("person_id").alias("row_id"))
    if old is None or old.is_empty():
        first = reserve(p.connection, p.cdm, table, rows.height)
        return rows.with_columns(pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias("row_id"))
    rows = rows.join(old, on=["surrogate_id", "row_key"], how="left", maintain_order="left")
    new = rows["row_id"].null_count()
    if not new:
        return rows
    first = reserve(p.connection, p.cdm, table, new)
    missing = pl.col("row_id").is_null()
    return rows.with_columns(
        pl.when(missing).then(first + missing.cum_sum().cast(pl.Int64) - 1).otherwise("row_id").alias("row_id")
    )


def _lineage(p: Publication, table: str, rows: pl.DataFrame) -> None:
    frame = rows.with_columns(pl.lit(p.export.export_id, dtype=pl.Int64).alias("export_id"))
    copy_frame(p.connection, lineage_table_name(table), frame)


def _note_pending(p: Publication, rows: pl.DataFrame, links: list[str], table: str) -> None:
    """References to rows that do not exist yet: linked when they arrive."""
    for column in links:
        if LINKS[column] in {"person", "location"} or LINKS[column] == table:
            continue
        missing = rows.select("surrogate_id", pl.col(column).alias("to_surrogate_id")).drop_nulls()
        known = p.ids.existing[LINKS[column]].rename({"surrogate_id": "to_surrogate_id"})
        missing = missing.join(known, on="to_surrogate_id", how="anti")
        if not missing.is_empty():
            p.pending.append(
                missing.select(
                    pl.col("surrogate_id").alias("from_surrogate_id"),
                    pl.lit(column).alias("role"),
                    "to_surrogate_id",
                    pl.lit("pending").alias("state"),
                )
            )


def remove_unused_locations(p: Publication) -> None:
    row = p.connection.execute("SELECT to_regclass('pg_temp.left_locations') IS NOT NULL").fetchone()
    if not row or not row[0]:
        return
    deleted = p.connection.execute(
        f"DELETE FROM {p.cdm}.location AS row USING (SELECT DISTINCT row_id FROM pg_temp.left_locations) AS gone"
        f" WHERE row.location_id = gone.row_id"
        f" AND NOT EXISTS (SELECT FROM lineage_location AS l WHERE l.row_id = row.location_id)"
        f" AND NOT EXISTS (SELECT FROM {p.cdm}.person AS p WHERE p.location_id = row.location_id)"
        f" AND NOT EXISTS (SELECT FROM {p.cdm}.care_site AS c WHERE c.location_id = row.location_id)"
    )
    p.report.rows_deleted["location"] += deleted.rowcount


def _links_to(table: str) -> list[tuple[str, str]]:
    """(column, table) of every link to an entity table, NULL allowed."""
    return [
        (column, other)
        for column, target in LINKS.items()
        if target == table
        for other in LINEAGE_TABLES
        if other != table and column in polars_schema(other) and column not in cdm_schema.required_columns(other)
    ]
