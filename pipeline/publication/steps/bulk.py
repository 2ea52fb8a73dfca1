"""The first load of a warehouse: tables filled without their indices and without the write-ahead log.

What is dropped and emptied here is part of the publication's transaction: one that fails leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import polars as pl
from sqlalchemy import Index, Table
from sqlalchemy.exc import InternalError
from sqlalchemy.schema import CreateIndex, DropIndex

from omop_schema import cdm as cdm_schema
from omop_schema.cdm import CDM_TABLES
from omop_schema.etl import LINEAGE_TABLES, build_metadata, lineage_table_name
from pipeline.publication.context import Publication
from pipeline.publication.known_cache import keeping_mark
from pipeline.staging import schemas

__all__ = ["create_indices", "create_state_indices", "drop_indices", "is_bulk_load", "without_key"]

#: Rows below which dropping and rebuilding the indices of an empty warehouse does not pay.
_BULK_ROWS = 50_000

#: Tables of the etl schema that a load fills, besides lineage. `id_map` keeps its key: ids are found by it meanwhile.
_STATE_TABLES = ("resource_state", "reference", "reference_value")


def is_bulk_load(p: Publication) -> bool:
    """Indices are dropped only when the warehouse is empty and the load large enough for it to pay."""
    if p.count(f"SELECT count(*) FROM (SELECT FROM {p.cdm}.person LIMIT 1) AS any_person"):
        return False
    return int(p.staged.scan(schemas.OUTCOME).select(pl.len()).collect().item()) >= _BULK_ROWS


def drop_indices(p: Publication) -> None:
    """Indices and foreign keys go until the rows are there. Surrogate ids are hashes: to put each in its place in a
    B-tree costs half of a load.

    Tables that are empty are emptied again: what is written into a table's new file is not logged by a server with
    wal_level = minimal (the embedded one), but synced at the commit.
    """
    p.has_vocabulary_constraints = bool(
        cdm_schema.drop_constraints(p.sqlalchemy, p.cdm, p.vocab, tables=CDM_TABLES, only_vocabulary_constraints=True)
    )
    cdm_schema.drop_constraints(p.sqlalchemy, p.cdm, p.vocab, tables=CDM_TABLES)
    cdm_schema.drop_indices(p.sqlalchemy, p.cdm, p.vocab, tables=CDM_TABLES)
    for index in _lineage_indices(p):
        p.sqlalchemy.execute(DropIndex(index, if_exists=True))
    if p.is_first:
        for table in _state_tables(p):
            p.connection.execute(f"ALTER TABLE {table.name} DROP CONSTRAINT {_key_name(p, table)}")
            for index in table.indexes:
                p.sqlalchemy.execute(DropIndex(index, if_exists=True))
    names = [f"{p.cdm}.{table}" for table in CDM_TABLES]
    names += [f"{p.etl}.{lineage_table_name(table)}" for table in LINEAGE_TABLES]
    names += [f"{p.etl}.{table}" for table in (*_STATE_TABLES, "id_map")]
    empty = [name for name in names if not p.count(f"SELECT count(*) FROM (SELECT FROM {name} LIMIT 1) AS any_row")]
    with keeping_mark(p.connection):
        p.connection.execute(f"TRUNCATE {', '.join(empty)}")
    p.emptied = frozenset(empty)


@contextmanager
def without_key(p: Publication, table: str) -> Iterator[None]:
    """A CDM table without its primary key while it is filled, if this transaction emptied it: rows refer to none of its
    rows yet. A key on which something of another owner depends (a view that groups by it) stays.
    """
    dropped = 0
    if f"{p.cdm}.{table}" in p.emptied:
        with suppress(InternalError), p.sqlalchemy.begin_nested():
            dropped = cdm_schema.drop_primary_keys(p.sqlalchemy, p.cdm, p.vocab, tables=[table])
    yield
    if dropped:
        cdm_schema.create_primary_keys(p.sqlalchemy, p.cdm, p.vocab, tables=[table])


def create_state_indices(p: Publication) -> None:
    """Keys and indices of state, references and lineage: the derived tables ask by them."""
    for index in _lineage_indices(p):
        p.sqlalchemy.execute(CreateIndex(index, if_not_exists=True))
    if p.is_first:
        for table in _state_tables(p):
            columns = ", ".join(column.name for column in table.primary_key.columns)
            name = f" CONSTRAINT {table.primary_key.name}" if table.primary_key.name else ""
            p.connection.execute(f"ALTER TABLE {table.name} ADD{name} PRIMARY KEY ({columns})")
            for index in table.indexes:
                p.sqlalchemy.execute(CreateIndex(index, if_not_exists=True))
    tables = [*_STATE_TABLES, "id_map", *map(lineage_table_name, LINEAGE_TABLES)]
    p.connection.execute(f"ANALYZE {', '.join(f'{p.etl}.{table}' for table in tables)}")


def create_indices(p: Publication) -> None:
    """Indices and foreign keys of the CDM, as they were before."""
    cdm_schema.create_indices(p.sqlalchemy, p.cdm, p.vocab, tables=CDM_TABLES)
    cdm_schema.create_constraints(
        p.sqlalchemy,
        p.cdm,
        p.vocab,
        tables=CDM_TABLES,
        include_vocabulary_constraints=p.has_vocabulary_constraints,
    )


def _lineage_indices(p: Publication) -> list[Index]:
    tables = build_metadata(p.etl).tables
    return [index for name in LINEAGE_TABLES for index in tables[f"{p.etl}.{lineage_table_name(name)}"].indexes]


def _state_tables(p: Publication) -> list[Table]:
    tables = build_metadata(p.etl).tables
    return [tables[f"{p.etl}.{name}"] for name in _STATE_TABLES]


def _key_name(p: Publication, table: Table) -> str:
    row = p.connection.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'p'", (f"{p.etl}.{table.name}",)
    ).fetchone()
    assert row is not None, "each of these tables has a primary key"
    return str(row[0])
