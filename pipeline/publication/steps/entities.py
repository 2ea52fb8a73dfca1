"""Rows that other rows refer to: ids by resource, new rows by COPY, changed ones updated under their id."""

from __future__ import annotations

import polars as pl

from omop_schema.cdm import polars_schema
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.publication.ids import ENTITY_TABLES, LINKS, EntityIds
from pipeline.publication.sql import Database
from pipeline.publication.steps.lineage import lineage_rows
from pipeline.publication.steps.links import waiting_links
from pipeline.publication.steps.merges import move_events, with_survivors
from pipeline.publication.steps.stand_ins import TARGETS_BY_STAND_IN, StandIns
from pipeline.publication.tables import own_key, table_names, update_names
from pipeline.publication.values import DETAIL_SCHEMA, Decisions, Entities, Incoming, RowCounts, Written
from pipeline.warehouse.copying import copy_frame, encoded

__all__ = ["write_entities"]


def write_entities(db: Database, incoming: Incoming, decisions: Decisions, stand_ins: StandIns) -> Entities:
    """Write the rows of all entity tables, in the order in which they refer to each other. Once persons are there, the
    events of merged ones move."""
    writer = _Writer(db, incoming, decisions, stand_ins)
    for table in ENTITY_TABLES:
        writer.write(table)
        if table == "person":
            writer.counts.add(move_events(db, decisions))
    details = pl.DataFrame(schema=DETAIL_SCHEMA)
    written = Written(writer.counts, writer.references)
    return Entities(writer.ids, writer.new_rows, writer.stand_ins_with_row, details, written)


class _Writer:
    """What is written so far."""

    def __init__(self, db: Database, incoming: Incoming, decisions: Decisions, stand_ins: StandIns) -> None:
        self._db, self._incoming, self._decisions, self._stand_ins = db, incoming, decisions, stand_ins
        self.ids = EntityIds(db)
        self.counts = RowCounts()
        self.references: list[pl.DataFrame] = []
        self.new_rows: dict[str, pl.Series] = {}
        self.stand_ins_with_row: dict[str, pl.DataFrame] = {}

    def write(self, table: str) -> None:
        """The rows of one table."""
        db = self._db
        rows, references = with_survivors(self._decisions.rows(table), table, self._decisions.merged)
        self.references += references
        own_id = own_key(table)
        key = "row_key" if table == "location" else "surrogate_id"
        mine, new = self._assign(table, rows[key])
        self.new_rows[table] = new
        if rows.is_empty():
            return
        links = [column for column in rows.columns if column in LINKS and column != own_id]
        self.references += waiting_links(rows, links, table, self.ids, self.stand_ins_with_row)
        rows = self.ids.linked(rows, links)
        rows = rows.join(mine.rename({"surrogate_id": key, "row_id": "own_row_id"}), on=key, maintain_order="left")
        distinct = rows.unique("own_row_id", keep="first", maintain_order=True)
        distinct = distinct.with_columns(pl.col("own_row_id").alias(own_id))
        columns = list(polars_schema(table))
        is_new = pl.col(key).is_in(new.implode())
        target, origin = f"{db.cdm}.{table}", f"{db.etl}.{lineage_table_name(table)}"
        new_rows = encoded(distinct.filter(is_new).select(columns), db.types(target))
        self.counts.inserted[table] += db.copy(target, new_rows)
        self._update(table, own_id, distinct.filter(~is_new).select(columns))
        lineage = lineage_rows(rows.rename({"own_row_id": "row_id"}), self._incoming.export.export_id)
        db.copy(origin, encoded(lineage, db.types(origin)))

    def _assign(self, table: str, own: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        """`EntityIds.assign` for all that staged rows refer to, also by what stands for it."""
        referred = _referred_to(self._decisions, table)
        if table not in TARGETS_BY_STAND_IN:
            return self.ids.assign(table, own, referred)
        stand_ins = self._stand_ins.resolved(pl.concat([own.clear(), *referred]))
        found = self.ids.assign(table, own, [*referred, stand_ins["target"]])
        self.stand_ins_with_row[table] = self.ids.add_stand_ins(table, stand_ins)
        return found

    def _update(self, table: str, own_id: str, rows: pl.DataFrame) -> None:
        """Rows that stay under their id: only those that differ are written."""
        if rows.is_empty():
            return
        self._db.execute("updated_rows", **table_names(table))
        copy_frame(self._db.connection, f"pg_temp.updated_{table}", rows)
        # The preceding visit follows from all visits of the person: see the derived tables.
        columns = [name for name in rows.columns if name not in {own_id, "preceding_visit_occurrence_id"}]
        updated = self._db.execute("update_rows", **update_names(table, columns))
        self.counts.deleted[table] += updated
        self.counts.inserted[table] += updated


def _referred_to(decisions: Decisions, table: str) -> list[pl.Series]:
    """Distinct surrogate ids by which staged rows refer to an entity table, or what follows from them."""
    staged = decisions.staged
    chains = {"person": decisions.merged, "visit_occurrence": decisions.children}.get(table)
    ends = [chains["from"], chains["last"]] if chains is not None else []
    return ends + [
        staged.scan(other).select(pl.col(column).alias("surrogate_id")).drop_nulls().unique().collect()["surrogate_id"]
        for other in staged.kinds()
        if other in LINEAGE_TABLES and other != table
        for column, target in LINKS.items()
        if target == table and column in polars_schema(other)
    ]
