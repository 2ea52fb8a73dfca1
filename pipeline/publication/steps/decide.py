"""Which lines of an export count: the last of a resource, none older than what is known, none without its person."""

from __future__ import annotations

import polars as pl

from omop_schema.cdm import polars_schema
from omop_schema.etl import LINEAGE_TABLES
from omop_schema.exports import ExportKind
from pipeline.core.errors import ConfigurationError
from pipeline.publication.chains import in_cycles, resolved_chains
from pipeline.publication.context import LINE, Publication
from pipeline.publication.seen import read_seen
from pipeline.publication.steps import vanished
from pipeline.publication.steps.crosswalk import read_crosswalk
from pipeline.staging import schemas
from pipeline.warehouse.copying import read_frame, temporary_table

__all__ = ["decide"]


def decide(p: Publication) -> None:
    """Sets what `Publication` says of lines, persons and sub-encounters, and makes the temporary table `changed`."""
    lines = p.staged.scan(schemas.OUTCOME).filter(pl.col("outcome") != "rejected").select(LINE).collect()
    lines = lines.drop_nulls("surrogate_id")
    vanished.judge(p)
    if p.over_newer:
        p.outlived = p.outlived.clear()
    outlived = lines.join(p.outlived, on="surrogate_id", how="semi")
    p.superseded = pl.concat([_repeated(p, lines), _older_than_known(p, lines), outlived]).unique()
    p.not_loaded = p.superseded
    lines = pl.concat([lines, _silent_lines(p.vanished)])
    links = _links(p, "replaced_by", "replaced_by_cycle", lines)
    crosswalk = read_crosswalk(p.settings.person_crosswalk, p.settings.surrogate_salt)
    links = pl.concat([links, crosswalk]).unique("from", keep="first", maintain_order=True)
    if not in_cycles(links).is_empty():
        raise ConfigurationError(
            "The person crosswalk and what patients say of themselves make a circle.",
            "Take one of the lines out of the crosswalk; nothing was published.",
        )
    p.merged = resolved_chains(links, _known(p, links, "person", lines))
    _refuse(p, _without_person(p, p.loaded(lines)).with_columns(pl.lit("person_unknown").alias("code")))
    links = _links(p, "part_of", "part_of_cycle", lines)
    p.children = resolved_chains(links, _known(p, links, "visit_occurrence", lines))
    changed = p.loaded(lines).select("surrogate_id")
    if changed["surrogate_id"].n_unique() < changed.height:  # which is seldom, and asked in a fraction of the time
        changed = changed.unique()
    # Resources of which no line is loaded; of a repeated one, a line is.
    p.dropped = p.not_loaded.select("surrogate_id").unique().join(changed, on="surrogate_id", how="anti")
    p.dropped = pl.concat([p.dropped, p.outlived]).unique()
    temporary_table(p.connection, "changed", changed)


def _silent_lines(resources: pl.DataFrame) -> pl.DataFrame:
    """What vanished is like a resource whose line says nothing any more; no line of a file has these numbers."""
    file_number, line = pl.lit(0, dtype=pl.Int32).alias("file_number"), pl.lit(0, dtype=pl.Int64).alias("line")
    return resources.select("surrogate_id", file_number, line)


def _refuse(p: Publication, lines: pl.DataFrame) -> None:
    """Reject lines (LINE, code, person) that are not out already."""
    refused = lines.join(p.not_loaded, on=LINE, how="anti").select(*LINE, "code", "person")
    p.refused = pl.concat([p.refused, refused])
    p.not_loaded = pl.concat([p.not_loaded, refused.select(LINE)])


def _links(p: Publication, fact: str, cycle_code: str, lines: pl.DataFrame) -> pl.DataFrame:
    """Links from resource to resource that facts of one name say, free of cycles. Columns: from, next.

    A line that would close a cycle is rejected; what its resource said before stays.
    """
    stored = read_frame(
        p.connection,
        f"SELECT surrogate_id, value::bigint FROM reference_value WHERE name = '{fact}'",
        {"from": pl.Int64, "next": pl.Int64},
    )
    staged = p.staged.scan(schemas.REFERENCE_VALUE).filter(pl.col("name") == fact)
    arriving = p.loaded(
        staged.select("surrogate_id", "file_number", "line", pl.col("value").cast(pl.Int64).alias("next")).collect()
    ).unique(LINE)
    if stored.is_empty() and arriving.is_empty():
        return stored
    links = _with_stored(p, arriving, stored, lines)
    cycles = in_cycles(links)
    if cycles.is_empty():
        return links
    closing = arriving.filter(pl.col("surrogate_id").is_in(cycles.implode()))
    nobody = pl.lit(None, dtype=pl.Int64).alias("person")
    _refuse(p, closing.with_columns(pl.lit(cycle_code).alias("code"), nobody))
    return _with_stored(p, p.loaded(arriving), stored, lines)


def _with_stored(p: Publication, arriving: pl.DataFrame, stored: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """What this export says, and for all resources that it does not change what is stored."""
    counted = p.loaded(lines).select(pl.col("surrogate_id").alias("from"))
    said = arriving.select(pl.col("surrogate_id").alias("from"), "next")
    return pl.concat([said, stored.join(counted, on="from", how="anti")])


def _known(p: Publication, links: pl.DataFrame, table: str, lines: pl.DataFrame) -> pl.Series:
    """Those of the links' targets that are loaded, or have a row of an entity table in this export."""
    if links.is_empty():
        return links["next"]
    p.connection.execute("DROP TABLE IF EXISTS pg_temp.wanted_targets")
    temporary_table(p.connection, "wanted_targets", links.select(pl.col("next").unique()))
    stored = read_frame(
        p.connection,
        "SELECT surrogate_id FROM pg_temp.wanted_targets JOIN resource_state ON surrogate_id = next"
        " WHERE outcome = 'loaded'",
        {"surrogate_id": pl.Int64},
    )
    stored = stored.join(p.loaded(lines), on="surrogate_id", how="anti")
    arriving = p.loaded(p.staged.scan(table).select(LINE).collect()).select("surrogate_id")
    return pl.concat([stored, arriving])["surrogate_id"]


def _repeated(p: Publication, lines: pl.DataFrame) -> pl.DataFrame:
    """A resource that repeats in an export is one resource: its last line in the order of files wins."""
    unchanged = p.staged.scan(schemas.UNCHANGED).select(LINE)
    unchanged = unchanged.join(lines.lazy().select("surrogate_id"), on="surrogate_id", how="semi")
    every = pl.concat([lines, unchanged.collect()])
    if every["surrogate_id"].n_unique() == every.height:
        return lines.clear()
    last = every.sort("file_number", "line").unique("surrogate_id", keep="last")
    return lines.join(last, on=LINE, how="anti")


def _older_than_known(p: Publication, lines: pl.DataFrame) -> pl.DataFrame:
    """An older export never overwrites a newer one: lines of resources that a newer export held as well.

    The line that made what is known is not older than what is known, also when newer exports held it unchanged: it may
    be mapped again, in a replay (what it depends on has changed) or because its export is published again.
    """
    if p.over_newer:
        return lines.clear()
    newer = p.connection.execute(
        "SELECT export_id FROM export_job WHERE site = %s AND published_at IS NOT NULL AND transaction_time > %s",
        (p.export.site, p.export.transaction_time),
    ).fetchall()
    if not newer:
        return lines.clear()
    seen = read_seen(p.settings.home, p.export.site, [row[0] for row in newer])
    temporary_table(p.connection, "incoming_lines", lines.select("surrogate_id").unique())
    known = read_frame(
        p.connection,
        "SELECT surrogate_id FROM pg_temp.incoming_lines JOIN resource_state AS state USING (surrogate_id)"
        " WHERE state.as_of > %s",
        {"surrogate_id": pl.Int64},
        (p.export.transaction_time,),
    )
    current = read_frame(
        p.connection,
        "SELECT surrogate_id FROM pg_temp.incoming_lines JOIN resource_state AS state USING (surrogate_id)"
        " WHERE state.as_of = %s AND (%s OR state.export_id = %s)",
        {"surrogate_id": pl.Int64},
        (p.export.transaction_time, p.export.kind == ExportKind.REPLAY, p.export.export_id),
    )
    confirmed = seen.join(current.lazy(), on="surrogate_id", how="anti")
    return lines.lazy().join(pl.concat([known.lazy(), confirmed]), on="surrogate_id", how="semi").collect()


def _without_person(p: Publication, counted: pl.DataFrame) -> pl.DataFrame:
    """Lines with a row whose person is neither loaded nor in this export. Columns: LINE, person.

    A person whose Patient is among the counted lines and makes no row any more is not loaded.
    """
    rows = [
        p.staged.scan(table).select(*LINE, pl.col("person_id").alias("person"))
        for table in p.staged.kinds()
        if table in LINEAGE_TABLES and table != "person" and "person_id" in polars_schema(table)
    ]
    schema = {"surrogate_id": pl.Int64, "file_number": pl.Int32, "line": pl.Int64, "person": pl.Int64}
    if not rows:
        return pl.DataFrame(schema=schema)
    arriving = p.loaded(p.staged.scan("person").select(LINE).collect()).select(pl.col("surrogate_id").alias("person"))
    arriving = pl.concat([arriving, p.merged.select(pl.col("from").alias("person"))])
    persons = pl.concat([frame.select("person") for frame in rows]).unique().collect()
    unknown = persons.join(arriving, on="person", how="anti")
    temporary_table(p.connection, "wanted_person_ids", unknown)
    known = read_frame(
        p.connection,
        "SELECT surrogate_id FROM pg_temp.wanted_person_ids JOIN id_map ON surrogate_id = person"
        f" JOIN {p.cdm}.person AS row ON row.person_id = row_id WHERE cdm_table = 'person'",
        {"person": pl.Int64},
    )
    known = known.join(counted, left_on="person", right_on="surrogate_id", how="anti")
    unknown = unknown.join(known, on="person", how="anti")
    if unknown.is_empty():
        return pl.DataFrame(schema=schema)
    return pl.concat([frame.join(unknown.lazy(), on="person", how="semi") for frame in rows]).unique(LINE).collect()
