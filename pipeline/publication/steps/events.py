"""Rows that other rows do not refer to by resource: links to row ids, ids, COPY, lineage. What keeps its meaning keeps its
id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from omop_schema.cdm import polars_schema, primary_key
from omop_schema.etl import lineage_table_name
from pipeline.publication.ids import LINKS, NewIds
from pipeline.publication.sql import Database
from pipeline.publication.steps.bulk import BulkLoad, without_key
from pipeline.publication.steps.lineage import lineage_rows
from pipeline.publication.steps.links import waiting_links
from pipeline.publication.steps.merges import with_survivors
from pipeline.publication.steps.visits import link_details
from pipeline.publication.tables import EVENT_COLUMNS, event_names
from pipeline.publication.values import Decisions, Entities, FormerRows, Written
from pipeline.staging import schemas
from pipeline.warehouse.copying import EncodedRows, ahead, encoded

__all__ = ["EventTable", "link_rows", "write_events"]


@dataclass(frozen=True)
class EventTable:
    """A table to be written, and what its rows need."""

    table: str
    export_id: int
    decisions: Decisions
    entities: Entities
    former: FormerRows
    bulk: BulkLoad | None = None


def write_events(db: Database, own: EventTable) -> Written:
    """The rows of one table."""
    table, written = own.table, Written()
    has_ids = primary_key(table) is not None
    count = own.decisions.staged.scan(table).select(pl.len()).collect().item() if has_ids else 0
    ids = NewIds(db.connection, db.cdm, table, count)
    target, origin = f"{db.cdm}.{table}", f"{db.etl}.{lineage_table_name(table)}"
    types = db.types(target), db.types(origin)
    with without_key(db, own.bulk, table):
        for rows, lineage in ahead(_encoded_events(own, ids, types, written.references)):
            written.counts.inserted[table] += db.copy(target, rows)
            db.copy(origin, lineage)
    ids.give_back()
    return written


def _encoded_events(
    own: EventTable,
    ids: NewIds,
    types: tuple[Mapping[str, str], Mapping[str, str]],
    references: list[pl.DataFrame],
) -> Iterator[tuple[EncodedRows, EncodedRows]]:
    """Rows and lineage of some parts at a time, ready to be copied; rows for `etl.reference` join `references`. Asks
    nothing of the server, which is busy with the last.

    `types`: of the columns of both tables.
    """
    table, entities = own.table, own.entities
    own_id = primary_key(table)
    links = [column for column in polars_schema(table) if column in LINKS]
    for part in own.decisions.staged.frames(table):
        rows, moved = with_survivors(own.decisions.of_table(part, table), table, own.decisions.merged)
        references += moved
        if rows.is_empty():
            continue
        rows = link_details(rows, table, entities.details)
        references += waiting_links(rows, links, table, entities.ids, entities.stand_ins)
        rows = entities.ids.linked(rows, links)
        if "visit_occurrence_id" in links:
            rows = rows.with_columns(pl.coalesce("visit_occurrence_id", "linked_visit").alias("visit_occurrence_id"))
        rows = _with_row_ids(rows, own_id, ids, own.former.ids.get(table))
        if own_id:
            rows = rows.with_columns(pl.col("row_id").alias(own_id))
        lineage = lineage_rows(rows, own.export_id)
        # Only what the table has in the database's version of the CDM.
        columns = [name for name in polars_schema(table) if name in types[0]]
        yield encoded(rows.select(columns), types[0]), encoded(lineage, types[1])


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


def link_rows(db: Database, decisions: Decisions) -> None:
    """Rows that belong to another row of their resource get its id. A table without such columns keeps them apart."""
    links = decisions.loaded(decisions.staged.scan(schemas.EVENT_LINK).collect())
    if links.is_empty():
        return
    db.put("event_link", links)
    for table, event_table in links.select("cdm_table", "event_table").unique().sort("cdm_table", "event_table").rows():
        if table in EVENT_COLUMNS:
            db.execute("link_rows_of_resource", **event_names(table, event_table))
