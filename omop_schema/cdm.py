"""The OMOP CDM as data: the schema is declared once, in CSV, and everything else is made from it.

`cdm_v5_4_fields.csv` and `cdm_v5_5_fields.csv` hold the facts of OHDSI's field-level specification (tables, types, NOT
NULL, keys), `cdm_v5_4_indices.csv` OHDSI's standard indices that a primary key does not cover already (5.5 has no
others). From them come the SQLAlchemy metadata, the DDL, and the polars schemas of staging files. Nothing here knows FHIR
or the `etl` schema.

Only `create_tables` and `add_columns` ask for a version. Keys, foreign keys and indices follow the columns that are there.

Departures from the specification, all of them wider than it: identifiers of rows are BIGINT, not INTEGER, and
primary keys of CDM tables are filled from a sequence; foreign keys are DEFERRABLE, so that a publication may
delete a row and insert it again under the same id; foreign keys inside the CDM that OHDSI does not index get a
partial index, because a delete would scan whole tables without it. 5.5's foreign key from note_nlp to note is left out:
others fill note_nlp, and a note that goes, or is mapped again, would stop the whole publication.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Date,
    DateTime,
    Integer,
    MetaData,
    Numeric,
    Sequence,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.types import TypeEngine

from omop_schema.cdm_fields import (
    CDM_TABLES,
    TABLES,
    VOCABULARY_TABLES,
    Field,
    column_length,
    fields,
    lines_of,
    polars_schema,
    primary_key,
    required_columns,
    sequence_name,
    tables_of,
)
from omop_schema.versions import DEFAULT_CDM_VERSION, CdmVersion

__all__ = [
    "CDM_TABLES",
    "TABLES",
    "VOCABULARY_TABLES",
    "Field",
    "add_columns",
    "build_metadata",
    "column_length",
    "create_constraints",
    "create_indices",
    "create_primary_keys",
    "create_tables",
    "drop_constraints",
    "drop_indices",
    "drop_primary_keys",
    "fields",
    "polars_schema",
    "primary_key",
    "required_columns",
    "sequence_name",
    "tables_of",
]

#: Foreign keys of the specification that are not made: see above.
_LEFT_OUT = frozenset((("note_nlp", "note_id"),))


def _column_type(field: Field) -> TypeEngine[Any]:
    if field.is_row_id:
        return BigInteger()
    match field.datatype:
        case "integer":
            return Integer()
        case "float":
            return Numeric()
        case "date":
            return Date()
        case "datetime":
            return DateTime(timezone=False)
    length = column_length(field.table, field.name)
    return String(length) if length else Text()


def _is_nullable(field: Field) -> bool:
    """A primary key is NOT NULL whatever the specification says of it (vocabulary.vocabulary_id in 5.5)."""
    return not (field.required or field.is_primary_key)


def _column(field: Field, metadata: MetaData, schema: str) -> Column[Any]:
    default = None
    if field.is_primary_key and (name := sequence_name(field.table)):
        default = Sequence(name, data_type=BigInteger, schema=schema, metadata=metadata).next_value()
    return Column(field.name, _column_type(field), nullable=_is_nullable(field), server_default=default)


def build_metadata(cdm_schema: str, vocab_schema: str, version: CdmVersion = DEFAULT_CDM_VERSION) -> MetaData:
    """All tables of a version with columns, NOT NULL and sequences; no keys, constraints or indices.

    Tables are found as `metadata.tables["<schema>.<table>"]`.
    """
    metadata = MetaData()
    for table in tables_of(version):
        schema = vocab_schema if table in VOCABULARY_TABLES else cdm_schema
        Table(table, metadata, *(_column(field, metadata, schema) for field in fields(table, version)), schema=schema)
    return metadata


@dataclass(frozen=True)
class _Addition:
    """A key, foreign key or index: what is added to a table after it has been filled."""

    table: str
    column: str
    name: str
    #: `{schema}`, `{table}` and `{target}` are filled in, quoted.
    statement: str
    target: str | None = None


def _primary_keys() -> list[_Addition]:
    return [
        _Addition(
            table, key, f"xpk_{table}", f'ALTER TABLE {{table}} ADD CONSTRAINT "xpk_{table}" PRIMARY KEY ("{key}")'
        )
        for table in TABLES
        if (key := primary_key(table))
    ]


def _foreign_keys(*, to_vocabulary: bool) -> list[_Addition]:
    found = []
    for field in (field for table in TABLES for field in fields(table) if field.foreign_key):
        assert field.foreign_key is not None
        target, target_field = field.foreign_key
        if (target in VOCABULARY_TABLES) is not to_vocabulary or (field.table, field.name) in _LEFT_OUT:
            continue
        name = f"fpk_{field.table}_{field.name}"
        statement = (
            f'ALTER TABLE {{table}} ADD CONSTRAINT "{name}" FOREIGN KEY ("{field.name}")'
            f' REFERENCES {{target}} ("{target_field}") DEFERRABLE INITIALLY IMMEDIATE'
        )
        found.append(_Addition(field.table, field.name, name, statement, target))
    return found


def _indices() -> list[_Addition]:
    listed = [(line["table"], line["field"], line["index"]) for line in lines_of("cdm_v5_4_indices.csv")]
    found = [
        _Addition(table, column, name, f'CREATE INDEX IF NOT EXISTS "{name}" ON {{table}} ("{column}")')
        for table, column, name in listed
    ]
    covered = {(table, column) for table, column, _ in listed}
    for field in (field for table in CDM_TABLES for field in fields(table) if field.foreign_key):
        assert field.foreign_key is not None
        if field.foreign_key[0] in VOCABULARY_TABLES or (field.table, field.name) in covered | _LEFT_OUT:
            continue
        name = f"idx_fpk_{field.table}_{field.name}"
        statement = (
            f'CREATE INDEX IF NOT EXISTS "{name}" ON {{table}} ("{field.name}") WHERE "{field.name}" IS NOT NULL'
        )
        found.append(_Addition(field.table, field.name, name, statement))
    return found


@dataclass(frozen=True)
class _Schemas:
    cdm: str
    vocab: str

    def of(self, table: str) -> str:
        return self.vocab if table in VOCABULARY_TABLES else self.cdm

    def qualified(self, table: str) -> str:
        return f'{_quoted(self.of(table))}."{table}"'

    def existing(self, connection: Connection, query: str) -> set[tuple[str, str]]:
        """(schema, name) pairs that a catalogue query gives for the two schemas."""
        parameters = {"schemas": [self.cdm, self.vocab]}
        return {(row[0], row[1]) for row in connection.execute(text(query), parameters)}

    def columns(self, connection: Connection) -> set[tuple[str, str]]:
        """(table, column) of the CDM's tables as they are in the two schemas."""
        rows = connection.execute(text(_COLUMNS), {"schemas": [self.cdm, self.vocab]})
        return {(table, column) for schema, table, column in rows if table in TABLES and schema == self.of(table)}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


_CONSTRAINTS = """
    SELECT space.nspname, item.conname FROM pg_constraint AS item
    JOIN pg_namespace AS space ON space.oid = item.connamespace WHERE space.nspname = ANY(:schemas)
"""
_INDICES = """
    SELECT schemaname, indexname FROM pg_indexes WHERE schemaname = ANY(:schemas)
"""


_COLUMNS = """
    SELECT space.nspname, relation.relname, item.attname FROM pg_attribute AS item
    JOIN pg_class AS relation ON relation.oid = item.attrelid JOIN pg_namespace AS space ON space.oid = relation.relnamespace
    WHERE space.nspname = ANY(:schemas) AND relation.relkind IN ('r', 'p') AND item.attnum > 0 AND NOT item.attisdropped
"""


def create_tables(
    connection: Connection, cdm_schema: str, vocab_schema: str, version: CdmVersion = DEFAULT_CDM_VERSION
) -> None:
    """Create the tables and sequences that do not exist yet, without keys. The schemas must exist."""
    build_metadata(cdm_schema, vocab_schema, version).create_all(connection)


def add_columns(connection: Connection, cdm_schema: str, vocab_schema: str, version: CdmVersion) -> int:
    """Add the columns of a version that tables of an older one lack, empty, at the tables' ends; returns how many.

    The server only notes them: no row is written.
    """
    schemas = _Schemas(cdm_schema, vocab_schema)
    metadata = build_metadata(cdm_schema, vocab_schema, version)
    present = schemas.columns(connection)
    tables = {table for table, _ in present}
    added = 0
    for field in (field for table in tables_of(version) if table in tables for field in fields(table, version)):
        if (field.table, field.name) not in present:
            column = metadata.tables[f"{schemas.of(field.table)}.{field.table}"].c[field.name]
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f'ALTER TABLE {schemas.qualified(field.table)} ADD COLUMN "{field.name}" {kind}')
            added += 1
    return added


def create_primary_keys(
    connection: Connection, cdm_schema: str, vocab_schema: str, *, tables: Collection[str] = TABLES
) -> int:
    """Add the missing primary keys of these tables; returns how many were added."""
    return _add(connection, _Schemas(cdm_schema, vocab_schema), _primary_keys(), tables, _CONSTRAINTS)


def create_constraints(
    connection: Connection,
    cdm_schema: str,
    vocab_schema: str,
    *,
    tables: Collection[str] = TABLES,
    include_vocabulary_constraints: bool = False,
) -> int:
    """Add the missing foreign keys of these tables; returns how many were added.

    Those that refer to vocabulary tables (concept_id and the like) are left out unless asked for: a vocabulary
    is replaced in bulk, and a row may name a concept that the next release no longer has.
    """
    keys = _foreign_keys(to_vocabulary=False)
    if include_vocabulary_constraints:
        keys += _foreign_keys(to_vocabulary=True)
    return _add(connection, _Schemas(cdm_schema, vocab_schema), keys, tables, _CONSTRAINTS)


def create_indices(
    connection: Connection, cdm_schema: str, vocab_schema: str, *, tables: Collection[str] = TABLES
) -> int:
    """Create the missing indices of these tables; returns how many were created."""
    return _add(connection, _Schemas(cdm_schema, vocab_schema), _indices(), tables, _INDICES)


def drop_primary_keys(
    connection: Connection, cdm_schema: str, vocab_schema: str, *, tables: Collection[str] = TABLES
) -> int:
    """Drop the primary keys of these tables, whose foreign keys must be gone; returns how many were dropped."""
    return _drop(connection, _Schemas(cdm_schema, vocab_schema), _primary_keys(), tables, _CONSTRAINTS)


def drop_constraints(
    connection: Connection,
    cdm_schema: str,
    vocab_schema: str,
    *,
    tables: Collection[str] = TABLES,
    only_vocabulary_constraints: bool = False,
) -> int:
    """Drop the foreign keys of these tables (all, or those to vocabulary tables); returns how many were dropped."""
    unwanted = _foreign_keys(to_vocabulary=True)
    if not only_vocabulary_constraints:
        unwanted += _foreign_keys(to_vocabulary=False)
    return _drop(connection, _Schemas(cdm_schema, vocab_schema), unwanted, tables, _CONSTRAINTS)


def drop_indices(
    connection: Connection, cdm_schema: str, vocab_schema: str, *, tables: Collection[str] = TABLES
) -> int:
    """Drop the indices that `create_indices` makes on these tables; returns how many were dropped."""
    return _drop(connection, _Schemas(cdm_schema, vocab_schema), _indices(), tables, _INDICES)


def _add(
    connection: Connection,
    schemas: _Schemas,
    additions: list[_Addition],
    tables: Collection[str],
    catalogue: str,
) -> int:
    present, columns = schemas.existing(connection, catalogue), schemas.columns(connection)
    missing = [
        item
        for item in additions
        if item.table in tables
        and (item.table, item.column) in columns
        and (schemas.of(item.table), item.name) not in present
    ]
    for item in missing:
        target = schemas.qualified(item.target) if item.target else ""
        statement = item.statement.format(table=schemas.qualified(item.table), target=target)
        connection.exec_driver_sql(statement)
    return len(missing)


def _drop(
    connection: Connection,
    schemas: _Schemas,
    additions: list[_Addition],
    tables: Collection[str],
    catalogue: str,
) -> int:
    existing = schemas.existing(connection, catalogue)
    present = [item for item in additions if item.table in tables and (schemas.of(item.table), item.name) in existing]
    for item in present:
        if catalogue == _INDICES:
            connection.exec_driver_sql(f"DROP INDEX {_quoted(schemas.of(item.table))}.{_quoted(item.name)}")
        else:
            connection.exec_driver_sql(
                f"ALTER TABLE {schemas.qualified(item.table)} DROP CONSTRAINT {_quoted(item.name)}"
            )
    return len(present)
