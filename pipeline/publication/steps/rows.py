"""Rows: what earlier versions made goes, what this export makes comes, and what keeps its meaning keeps its id."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from omop_schema.cdm import polars_schema, primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.publication.context import Publication
from pipeline.publication.ids import ENTITY_TABLES, LINKS, NewIds
from pipeline.publication.removed_persons import remove_moved_events, remove_rows_of_persons
from pipeline.publication.steps.bulk import without_key
from pipeline.publication.steps.lineage import lineage_rows
from pipeline.publication.steps.links import note_pending, unlink
from pipeline.publication.steps.merges import with_survivors
from pipeline.publication.steps.stand_ins import TARGETS_BY_STAND_IN, resolved
from pipeline.publication.steps.visits import link_details
from pipeline.warehouse.copying import EncodedRows, ahead, copy_frame, encoded, read_frame, temporary_table

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
    _unlink_details(p)
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
    if table == "location":  # rows by content, shared: see `remove_unused_locations`
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
    if table == "person":  # a merged patient's events follow the survivor, and then the row goes: see `merges`
        remade = pl.concat([remade, p.merged.select(surrogate_id="from")])
    if table == "visit_occurrence":  # what becomes a detail goes without unlinking anything
        _remove_visits_of_children(p)
    temporary_table(p.connection, f"remade_{table}", remade)
    p.connection.execute(
        f"CREATE TEMP TABLE removed_{table} ON COMMIT DROP AS"
        f" SELECT lineage.surrogate_id, lineage.row_id FROM {lineage} AS lineage"
        " JOIN pg_temp.former USING (surrogate_id)"
        f" WHERE NOT EXISTS (SELECT FROM pg_temp.remade_{table} AS remade"
        " WHERE remade.surrogate_id = lineage.surrogate_id)"
    )
    if table == "person":
        _remove_moved_events(p)
    row = p.connection.execute(f"SELECT count(*) FROM pg_temp.removed_{table}").fetchone()
    if row and row[0]:
        if table == "person":
            p.report.rows_deleted += remove_rows_of_persons(p.connection, p.cdm)
        unlink(p, table, f"removed_{table}")
        deleted = p.connection.execute(
            f"DELETE FROM {p.cdm}.{table} USING pg_temp.removed_{table} AS removed WHERE {own} = removed.row_id"
        )
        p.report.rows_deleted[table] += deleted.rowcount
    p.connection.execute(
        f"DELETE FROM {lineage} AS lineage USING pg_temp.former AS former"
        " WHERE lineage.surrogate_id = former.surrogate_id"
    )


def _remove_moved_events(p: Publication) -> None:
    """Of replaced patients that are not loaded any more, whose events are with their survivors."""
    p.connection.execute(
        "CREATE TEMP TABLE removed_patient ON COMMIT DROP AS SELECT former.surrogate_id FROM pg_temp.former AS former"
        " WHERE EXISTS (SELECT FROM reference WHERE to_surrogate_id = former.surrogate_id AND role = 'person_id')"
        " AND NOT EXISTS (SELECT FROM pg_temp.remade_person AS remade WHERE remade.surrogate_id = former.surrogate_id)"
    )
    if p.count("SELECT count(*) FROM pg_temp.removed_patient"):
        p.report.rows_deleted += remove_moved_events(p.connection, p.cdm)
        p.connection.execute("DROP TABLE pg_temp.of_removed_person, pg_temp.belonged")


def _remove_visits_of_children(p: Publication) -> None:
    """Former visits of changed encounters that are sub-encounters now: their events follow them, see `visits`."""
    temporary_table(p.connection, "children_now", p.children.select(pl.col("from").alias("surrogate_id")))
    deleted = p.connection.execute(
        f"DELETE FROM {p.cdm}.visit_occurrence AS row USING lineage_visit_occurrence AS lineage, pg_temp.former AS former,"
        " pg_temp.children_now AS child WHERE lineage.surrogate_id = former.surrogate_id"
        " AND child.surrogate_id = former.surrogate_id AND row.visit_occurrence_id = lineage.row_id"
    )
    p.report.rows_deleted["visit_occurrence"] += deleted.rowcount
    p.connection.execute(
        "DELETE FROM lineage_visit_occurrence AS lineage USING pg_temp.former AS former, pg_temp.children_now AS child"
        " WHERE lineage.surrogate_id = former.surrogate_id AND child.surrogate_id = former.surrogate_id"
    )


def _unlink_details(p: Publication) -> None:
    """Rows on sub-encounters that are not loaded any more: they wait for the encounter, without a visit."""
    temporary_table(
        p.connection,
        "kept_encounters",
        pl.concat([p.taken("visit_occurrence").select("surrogate_id"), p.children.select(surrogate_id="from")]),
    )
    p.connection.execute(
        "CREATE TEMP TABLE removed_detail ON COMMIT DROP AS SELECT map.surrogate_id, map.row_id"
        " FROM pg_temp.former JOIN id_map AS map USING (surrogate_id)"
        " JOIN lineage_visit_detail AS lineage ON lineage.surrogate_id = map.surrogate_id AND lineage.row_id = map.row_id"
        " WHERE map.cdm_table = 'visit_detail'"
        " AND NOT EXISTS (SELECT FROM pg_temp.kept_encounters AS kept WHERE kept.surrogate_id = former.surrogate_id)"
    )
    if not p.count("SELECT count(*) FROM pg_temp.removed_detail"):
        return
    unlink(p, "visit_detail", "removed_detail")


def entities(p: Publication, table: str) -> None:
    """The rows of one table that other rows refer to: ids by resource, new rows by COPY, changed ones updated."""
    rows = with_survivors(p, p.taken(table), table)
    own_id = primary_key(table)
    assert own_id is not None, "entity tables have ids"
    key = "row_key" if table == "location" else "surrogate_id"
    mine, p.new_rows[table] = _assign(p, table, rows[key])
    new = p.new_rows[table]
    if rows.is_empty():
        return
    links = [column for column in rows.columns if column in LINKS and column != own_id]
    note_pending(p, rows, links, table)
    rows = p.ids.linked(rows, links)
    rows = rows.join(mine.rename({"surrogate_id": key, "row_id": "own_row_id"}), on=key, maintain_order="left")
    distinct = rows.unique("own_row_id", keep="first", maintain_order=True)
    distinct = distinct.with_columns(pl.col("own_row_id").alias(own_id))
    columns = list(polars_schema(table))
    is_new = pl.col(key).is_in(new.implode())
    target, origin = f"{p.cdm}.{table}", f"{p.etl}.{lineage_table_name(table)}"
    new_rows = encoded(distinct.filter(is_new).select(columns), p.types(target))
    p.report.rows_inserted[table] += p.copy(target, new_rows)
    _update(p, table, own_id, distinct.filter(~is_new).select(columns))
    lineage = lineage_rows(rows.rename({"own_row_id": "row_id"}), p.export.export_id)
    p.copy(origin, encoded(lineage, p.types(origin)))


def _assign(p: Publication, table: str, own: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """`EntityIds.assign` for all that staged rows refer to, also by what stands for it."""
    referred = _referred_to(p, table)
    if table not in TARGETS_BY_STAND_IN:
        return p.ids.assign(table, own, referred)
    stand_ins = resolved(p, pl.concat([own.clear(), *referred]))
    found = p.ids.assign(table, own, [*referred, stand_ins["target"]])
    p.stand_ins[table] = p.ids.add_stand_ins(table, stand_ins)
    return found


def _update(p: Publication, table: str, own_id: str, rows: pl.DataFrame) -> None:
    """Rows that stay under their id: only those that differ are written."""
    if rows.is_empty():
        return
    temporary = f"updated_{table}"
    p.connection.execute(f"CREATE TEMP TABLE {temporary} ON COMMIT DROP AS SELECT * FROM {p.cdm}.{table} WITH NO DATA")
    copy_frame(p.connection, f"pg_temp.{temporary}", rows)
    # The preceding visit follows from all visits of the person: see the derived tables.
    columns = [name for name in rows.columns if name not in {own_id, "preceding_visit_occurrence_id"}]
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
    """Distinct surrogate ids by which staged rows refer to an entity table, or what follows from them."""
    chains = {"person": p.merged, "visit_occurrence": p.children}.get(table)
    ends = [chains["from"], chains["last"]] if chains is not None else []
    return ends + [
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
    """The rows of one table that other rows do not refer to by resource: links to row ids, ids, COPY, lineage."""
    own_id = primary_key(table)
    count = p.staged.scan(table).select(pl.len()).collect().item() if own_id else 0
    ids = NewIds(p.connection, p.cdm, table, count)
    target, origin = f"{p.cdm}.{table}", f"{p.etl}.{lineage_table_name(table)}"
    types = p.types(target), p.types(origin)
    with without_key(p, table):
        for rows, lineage in ahead(_encoded_events(p, table, ids, types)):
            p.report.rows_inserted[table] += p.copy(target, rows)
            p.copy(origin, lineage)
    ids.give_back()


def _encoded_events(
    p: Publication, table: str, ids: NewIds, types: tuple[dict[str, str], dict[str, str]]
) -> Iterator[tuple[EncodedRows, EncodedRows]]:
    """Rows and lineage of some parts at a time, ready to be copied. Asks nothing of the server, which is busy with the last.

    `types`: of the columns of both tables.
    """
    own_id = primary_key(table)
    links = [column for column in polars_schema(table) if column in LINKS]
    for part in p.staged.frames(table):
        rows = with_survivors(p, p.loaded(part), table)
        if rows.is_empty():
            continue
        rows = link_details(p, rows, table)
        note_pending(p, rows, links, table)
        rows = p.ids.linked(rows, links)
        if "visit_occurrence_id" in links:
            rows = rows.with_columns(pl.coalesce("visit_occurrence_id", "linked_visit").alias("visit_occurrence_id"))
        rows = _with_row_ids(rows, own_id, ids, p.old_rows.get(table))
        if own_id:
            rows = rows.with_columns(pl.col("row_id").alias(own_id))
        yield (
            encoded(rows.select(list(polars_schema(table))), types[0]),
            encoded(lineage_rows(rows, p.export.export_id), types[1]),
        )


def _with_row_ids(rows: pl.DataFrame, own_id: str | None, ids: NewIds, old: pl.DataFrame | None) -> pl.DataFrame:
    """Adds row_id: the former id of a row of the same meaning, else a new one."""
    if own_id is None:
        return rows.with_columns(pl.col("person_id").alias("row_id"))
    if old is None or old.is_empty():
        first = ids.take(rows.height)
        return rows.with_columns(pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias("row_id"))
    rows = rows.join(old, on=["surrogate_id", "row_key"], how="left", maintain_order="left")
    new = rows["row_id"].null_count()
    if not new:
        return rows
    first = ids.take(new)
    missing = pl.col("row_id").is_null()
    return rows.with_columns(
        pl.when(missing).then(first + missing.cum_sum().cast(pl.Int64) - 1).otherwise("row_id").alias("row_id")
    )


def remove_unused_locations(p: Publication) -> None:
    """Locations that no resource and no row has any more."""
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
