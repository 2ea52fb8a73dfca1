"""The first load of a warehouse: tables filled without their indices and without the write-ahead log.

What is dropped and emptied here is part of the publication's transaction: one that fails leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import polars as pl
from sqlalchemy import Connection, Index, Table
from sqlalchemy.exc import InternalError
from sqlalchemy.schema import CreateIndex, DropIndex

from omop_schema import cdm as cdm_schema
from omop_schema.cdm import CDM_TABLES
from omop_schema.etl import LINEAGE_TABLES, build_metadata, lineage_table_name
from pipeline.publication.known_cache import keeping_mark
from pipeline.publication.sql import Database
from pipeline.staging import schemas
from pipeline.staging.parts import StagedExport

__all__ = ["BulkLoad", "create_indices", "create_state_indices", "drop_indices", "is_bulk_load", "without_key"]

#: Rows below which dropping and rebuilding the indices of an empty warehouse does not pay.
_BULK_ROWS = 50_000

#: Tables of the etl schema that a load fills, besides lineage. `id_map` keeps its key: ids are found by it meanwhile.
_STATE_TABLES = ("resource_state", "reference", "reference_value", "medication_record")


@dataclass(frozen=True)
class BulkLoad:
    """What was taken away until the rows are there."""

    #: the transaction as SQLAlchemy has it
    connection: Connection
    #: tables, with their schema, that were emptied
    emptied: frozenset[str]
    #: whether keys of states and references were dropped: nothing was ever loaded
    is_first: bool
    #: whether foreign keys to the vocabulary were among what was dropped
    has_vocabulary_constraints: bool


def is_bulk_load(db: Database, staged: StagedExport) -> bool:
    """Indices are dropped only when the warehouse is empty and the load large enough for it to pay."""
    if db.has_rows(f"{db.cdm}.person"):
        return False
    return int(staged.scan(schemas.OUTCOME).select(pl.len()).collect().item()) >= _BULK_ROWS


def drop_indices(db: Database, connection: Connection, *, is_first: bool) -> BulkLoad:
    """Indices and foreign keys go until the rows are there. Surrogate ids are hashes: to put each in its place in a
    B-tree costs half of a load.

    Tables that are empty are emptied again: what is written into a table's new file is not logged by a server with
    wal_level = minimal (the embedded one), but synced at the commit.
    """
    has_vocabulary_constraints = bool(
        cdm_schema.drop_constraints(connection, db.cdm, db.vocab, tables=CDM_TABLES, only_vocabulary_constraints=True)
    )
    cdm_schema.drop_constraints(connection, db.cdm, db.vocab, tables=CDM_TABLES)
    cdm_schema.drop_indices(connection, db.cdm, db.vocab, tables=CDM_TABLES)
    for index in _lineage_indices(db):
        connection.execute(DropIndex(index, if_exists=True))
    if is_first:
        for table in _state_tables(db):
            if table.primary_key.columns:
                key = db.value("primary_key_name", {"table": f"{db.etl}.{table.name}"})
                db.execute("drop_key", table=table.name, key=key)
            for index in table.indexes:
                connection.execute(DropIndex(index, if_exists=True))
    names = [f"{db.cdm}.{table}" for table in CDM_TABLES]
    names += [f"{db.etl}.{lineage_table_name(table)}" for table in LINEAGE_TABLES]
    names += [f"{db.etl}.{table}" for table in (*_STATE_TABLES, "id_map")]
    empty = [name for name in names if not db.has_rows(name)]
    with keeping_mark(db.connection):
        db.execute("empty_tables", tables=", ".join(empty))
    return BulkLoad(connection, frozenset(empty), is_first, has_vocabulary_constraints)


@contextmanager
def without_key(db: Database, bulk: BulkLoad | None, table: str) -> Iterator[None]:
    """A CDM table without its primary key while it is filled, if this transaction emptied it: rows refer to none of its
    rows yet. A key on which something of another owner depends (a view that groups by it) stays.
    """
    dropped = 0
    if bulk is not None and f"{db.cdm}.{table}" in bulk.emptied:
        with suppress(InternalError), bulk.connection.begin_nested():
            dropped = cdm_schema.drop_primary_keys(bulk.connection, db.cdm, db.vocab, tables=[table])
    yield
    if bulk is not None and dropped:
        cdm_schema.create_primary_keys(bulk.connection, db.cdm, db.vocab, tables=[table])


def create_state_indices(db: Database, bulk: BulkLoad) -> None:
    """Keys and indices of state, references and lineage: the derived tables ask by them."""
    for index in _lineage_indices(db):
        bulk.connection.execute(CreateIndex(index, if_not_exists=True))
    if bulk.is_first:
        for table in _state_tables(db):
            columns = ", ".join(column.name for column in table.primary_key.columns)
            named = f" CONSTRAINT {table.primary_key.name}" if table.primary_key.name else ""
            if columns:
                db.execute("create_key", table=table.name, named=named, columns=columns)
            for index in table.indexes:
                bulk.connection.execute(CreateIndex(index, if_not_exists=True))
    tables = [*_STATE_TABLES, "id_map", *map(lineage_table_name, LINEAGE_TABLES)]
    db.execute("count_tables", tables=", ".join(f"{db.etl}.{table}" for table in tables))


def create_indices(db: Database, bulk: BulkLoad) -> None:
    """Indices and foreign keys of the CDM, as they were before."""
    cdm_schema.create_indices(bulk.connection, db.cdm, db.vocab, tables=CDM_TABLES)
    cdm_schema.create_constraints(
        bulk.connection,
        db.cdm,
        db.vocab,
        tables=CDM_TABLES,
        include_vocabulary_constraints=bulk.has_vocabulary_constraints,
    )


def _lineage_indices(db: Database) -> list[Index]:
    tables = build_metadata(db.etl).tables
    return [index for name in LINEAGE_TABLES for index in tables[f"{db.etl}.{lineage_table_name(name)}"].indexes]


def _state_tables(db: Database) -> list[Table]:
    tables = build_metadata(db.etl).tables
    return [tables[f"{db.etl}.{name}"] for name in _STATE_TABLES]
