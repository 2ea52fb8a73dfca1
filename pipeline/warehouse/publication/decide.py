"""Which lines of an export count: the last of a resource, none older than what is known, none without its person."""

from __future__ import annotations

import polars as pl

from omop_schema.cdm import polars_schema
from omop_schema.etl import LINEAGE_TABLES
from pipeline.warehouse import staging
from pipeline.warehouse.copying import read_frame, temporary_table
from pipeline.warehouse.publication.context import LINE, Publication
from pipeline.warehouse.seen import read_seen

__all__ = ["decide"]


def decide(p: Publication) -> None:
    """Sets `not_loaded`: lines whose rows are not taken, with their final outcome; and the table `changed`."""
    lines = p.staged.scan(staging.OUTCOME).filter(pl.col("outcome") != "rejected").select(LINE).collect()
    lines = lines.drop_nulls("surrogate_id")
    superseded = pl.concat([_repeated(p, lines), _older_than_known(p, lines)]).unique()
    refused = _without_person(p).join(superseded, on=LINE, how="anti")
    p.superseded = superseded
    p.refused = refused.select(*LINE, pl.lit("person_unknown").alias("code"), "person")
    p.not_loaded = pl.concat([superseded, refused.select(LINE)])
    changed = lines.join(p.not_loaded, on=LINE, how="anti").select("surrogate_id").unique()
    # Resources of which no line is loaded; of a repeated one, a line is.
    p.dropped = p.not_loaded.select("surrogate_id").unique().join(changed, on="surrogate_id", how="anti")
    temporary_table(p.connection, "changed", changed)


def _repeated(p: Publication, lines: pl.DataFrame) -> pl.DataFrame:
    """A resource that repeats in an export is one resource: its last line in the order of files wins."""
    unchanged = p.staged.scan(staging.UNCHANGED).select(LINE)
    unchanged = unchanged.join(lines.lazy().select("surrogate_id"), on="surrogate_id", how="semi")
    every = pl.concat([lines, unchanged.collect()])
    if every["surrogate_id"].n_unique() == every.height:
        return lines.clear()
    last = every.sort("file_number", "line").unique("surrogate_id", keep="last")
    return lines.join(last, on=LINE, how="anti")


def _older_than_known(p: Publication, lines: pl.DataFrame) -> pl.DataFrame:
    """An older export never overwrites a newer one: lines of resources that a newer export held as well."""
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
    return lines.lazy().join(pl.concat([known.lazy(), seen]), on="surrogate_id", how="semi").collect()


def _without_person(p: Publication) -> pl.DataFrame:
    """Lines with a row whose person is neither loaded nor in this export. Columns: LINE, person."""
    rows = [
        p.staged.scan(table).select(*LINE, pl.col("person_id").alias("person"))
        for table in p.staged.kinds()
        if table in LINEAGE_TABLES and table != "person" and "person_id" in polars_schema(table)
    ]
    schema = {"surrogate_id": pl.Int64, "file_number": pl.Int32, "line": pl.Int64, "person": pl.Int64}
    if not rows:
        return pl.DataFrame(schema=schema)
    arriving = p.staged.scan("person").select(pl.col("surrogate_id").alias("person")).collect()
    persons = pl.concat([frame.select("person") for frame in rows]).unique().collect()
    unknown = persons.join(arriving, on="person", how="anti")
    temporary_table(p.connection, "wanted_person_ids", unknown)
    known = read_frame(
        p.connection,
        "SELECT surrogate_id FROM pg_temp.wanted_person_ids JOIN id_map ON surrogate_id = person"
        f" JOIN {p.cdm}.person AS row ON row.person_id = row_id WHERE cdm_table = 'person'",
        {"person": pl.Int64},
    )
    unknown = unknown.join(known, on="person", how="anti")
    if unknown.is_empty():
        return pl.DataFrame(schema=schema)
    return pl.concat([frame.join(unknown.lazy(), on="person", how="semi") for frame in rows]).unique(LINE).collect()
