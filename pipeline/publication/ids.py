"""Row ids: integers from the CDM's sequences, given set-based; `etl.id_map` keeps those that others refer to.

A resource that is a row (Patient → person) keeps its id for ever, also when the row goes and comes back.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl
import psycopg

from omop_schema.cdm import primary_key, sequence_name
from pipeline.publication.sql import Database
from pipeline.warehouse.copying import copy_frame

__all__ = ["ENTITY_TABLES", "LINKS", "EntityIds", "NewIds", "reserve"]

#: Tables whose rows other rows refer to, in the order in which they can be filled.
ENTITY_TABLES = ("location", "care_site", "provider", "person", "visit_occurrence")

#: Columns that are a surrogate id in staging, and the table that they refer to.
LINKS = {
    "person_id": "person",
    "visit_occurrence_id": "visit_occurrence",
    "provider_id": "provider",
    "care_site_id": "care_site",
    "location_id": "location",
}

_SCHEMA = {"surrogate_id": pl.Int64, "row_id": pl.Int64}


def reserve(connection: psycopg.Connection, cdm_schema: str, table: str, count: int) -> int:
    """The first of `count` consecutive ids of a table's sequence.

    The lock makes the step over the reserved ids one with the look at the sequence; it ends with the transaction.
    """
    name = sequence_name(table)
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"{cdm_schema}.{name}",))
    row = connection.execute(
        f"SELECT setval('{cdm_schema}.{name}', nextval('{cdm_schema}.{name}') + %s)", (count - 1,)
    ).fetchone()
    assert row is not None
    return int(row[0]) - count + 1


class NewIds:
    """Ids of a table's sequence for at most `count` new rows, in their order; `give_back` returns what is left."""

    def __init__(self, connection: psycopg.Connection, cdm_schema: str, table: str, count: int) -> None:
        self._connection = connection
        self._sequence = f"{cdm_schema}.{sequence_name(table)}"
        self._next = reserve(connection, cdm_schema, table, count) if count else 0
        self._end = self._next + count

    def take(self, count: int) -> int:
        """The first of `count` consecutive ids."""
        first = self._next
        self._next += count
        assert self._next <= self._end, "more rows than were counted"
        return first

    def give_back(self) -> None:
        """To be called in the same transaction: until its end nobody else reserves ids of the sequence."""
        if self._next < self._end:
            self._connection.execute(f"SELECT setval('{self._sequence}', {self._next}, false)")


class EntityIds:
    """Surrogate id → row id of the entity tables, for the surrogate ids that one export needs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        #: table → surrogate_id, row_id of rows that exist (or will, in this publication)
        self.existing: dict[str, pl.DataFrame] = {}

    def assign(self, table: str, own: pl.Series, referred: Iterable[pl.Series]) -> tuple[pl.DataFrame, pl.Series]:
        """Find the ids of the rows that others refer to, and give ids to the export's own rows, in their order.

        Returns (surrogate_id, row_id of own rows; surrogate ids that have no row in the table). What was found for the
        table before stays in `existing`.
        """
        db = self._db
        own = own.unique(maintain_order=True)
        named = pl.concat([own, *referred]).drop_nulls().unique()
        db.put(f"named_{table}", pl.DataFrame({"surrogate_id": named}))
        schema = {**_SCHEMA, "in_table": pl.String}
        known = db.frame("known_ids", schema, table=table, own=primary_key(table) or "person_id")
        new = own.filter(~own.is_in(known["surrogate_id"].implode()))
        given = pl.DataFrame(schema=_SCHEMA)
        if new.len():
            first = reserve(db.connection, db.cdm, table, new.len())
            ids = pl.int_range(first, first + new.len(), dtype=pl.Int64, eager=True)
            given = pl.DataFrame({"surrogate_id": new, "row_id": ids}, schema=_SCHEMA)
            copy_frame(db.connection, "id_map", given.with_columns(pl.lit(table).alias("cdm_table")))
        mine = pl.DataFrame({"surrogate_id": own}).join(
            pl.concat([known.select(*_SCHEMA), given]), on="surrogate_id", how="left", maintain_order="left"
        )
        present = known.filter(pl.col("in_table") == "t").select(*_SCHEMA)
        before = self.existing.get(table, present.clear())
        self.existing[table] = pl.concat([before, present, mine]).unique("surrogate_id", maintain_order=True)
        in_table = present["surrogate_id"].implode()
        return mine, own.filter(~own.is_in(in_table))

    def add_stand_ins(self, table: str, stand_ins: pl.DataFrame) -> pl.DataFrame:
        """Let what stands for a resource (columns surrogate_id, target) lead to its row. Returns those that do:
        surrogate_id, row_id. The targets must have been among the `referred` of `assign`."""
        rows = self.existing[table].rename({"surrogate_id": "target"})
        found = stand_ins.join(rows, on="target", how="inner").select(*_SCHEMA)
        self.existing[table] = pl.concat([self.existing[table], found]).unique("surrogate_id", maintain_order=True)
        return found

    def linked(self, frame: pl.DataFrame, columns: Iterable[str]) -> pl.DataFrame:
        """Replace surrogate ids by row ids; NULL where the row does not exist."""
        for column in columns:
            ids = self.existing[LINKS[column]].rename({"surrogate_id": column, "row_id": f"{column}_found"})
            frame = (
                frame.join(ids, on=column, how="left", maintain_order="left")
                .with_columns(pl.col(f"{column}_found").alias(column))
                .drop(f"{column}_found")
            )
        return frame
