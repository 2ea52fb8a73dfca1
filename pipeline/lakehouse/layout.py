"""What a snapshot holds: its tables, their columns and types, how they are partitioned and sorted. Nothing is read here.

A snapshot's folders have fixed names, whatever the database's schemas are called: `cdm`, `vocab`, `etl`, and `meta`
for what only the lakehouse has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import polars as pl

from omop_schema.cdm import CDM_TABLES, VOCABULARY_TABLES, Field, fields, primary_key, tables_of
from omop_schema.versions import CdmVersion
from pipeline.core.settings import Settings

__all__ = ["EXACT_NUMBER", "YEAR", "LakeTable", "lake_tables", "type_name"]

#: The partition column. No column of the CDM has this name.
YEAR = "year"

#: Event tables, which hold nearly all rows, and the date whose year is their partition (NOT NULL in the CDM).
_DATES: Mapping[str, str] = {
    "visit_occurrence": "visit_start_date",
    "visit_detail": "visit_detail_start_date",
    "condition_occurrence": "condition_start_date",
    "drug_exposure": "drug_exposure_start_date",
    "procedure_occurrence": "procedure_date",
    "device_exposure": "device_exposure_start_date",
    "measurement": "measurement_date",
    "observation": "observation_date",
    "note": "note_date",
    "specimen": "specimen_date",
}

#: Names of types as snapshot.json has them: Parquet's logical types, in the words of SQL.
_TYPE_NAMES: Mapping[pl.DataType, str] = {
    pl.Int32(): "integer",
    pl.Int64(): "bigint",
    pl.Float64(): "double",
    pl.Date(): "date",
    pl.Datetime("us"): "timestamp",
    pl.String(): "string",
}


@dataclass(frozen=True)
class LakeTable:
    """One table of a snapshot. `columns` are those of its files, in their order; a partition's year is in none of them."""

    folder: str
    name: str
    columns: Mapping[str, pl.DataType]
    #: Columns by which rows are sorted, within a partition.
    order: tuple[str, ...]
    date: str | None = None

    @property
    def path(self) -> str:
        """Relative to the snapshot."""
        return f"{self.folder}/{self.name}"

    @property
    def row_id(self) -> str:
        """The column that distinguishes rows in `meta/exact_number`: the primary key where there is one."""
        key = primary_key(self.name) if self.folder in ("cdm", "vocab") else None
        return key or self.order[0]

    @property
    def numbers(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self.columns.items() if kind == pl.Float64())

    def relation(self, settings: Settings) -> str:
        """The table or view in PostgreSQL, with its schema."""
        schemas = {"cdm": settings.cdm_schema, "vocab": settings.vocab_schema, "etl": settings.etl_schema}
        return f'{schemas[self.folder]}."{self.name}"'

    def query(self, settings: Settings) -> str:
        """All rows in the order of the files; the year comes first where the table is partitioned."""
        columns = [f'"{name}"' for name in self.columns]
        order = [f'"{name}"' for name in self.order]
        if self.date:
            columns.insert(0, f'extract(year FROM "{self.date}")::integer AS {YEAR}')
            order.insert(0, "1")
        return f"SELECT {', '.join(columns)} FROM {self.relation(settings)} ORDER BY {', '.join(order)}"


#: Numbers that a double does not hold, as text: see docs/lakehouse.md. It has no table in PostgreSQL.
EXACT_NUMBER = LakeTable(
    "meta",
    "exact_number",
    {"table_name": pl.String(), "row_id": pl.Int64(), "column_name": pl.String(), "value": pl.String()},
    ("table_name", "row_id", "column_name"),
)

_ROW_SOURCE = LakeTable(
    "etl",
    "row_source",
    {
        "cdm_table": pl.String(),
        "row_id": pl.Int64(),
        "site": pl.String(),
        "resource_type": pl.String(),
        "resource_id": pl.String(),
        "export_id": pl.Int64(),
        "vocabulary_release": pl.String(),
        "contact_date": pl.Date(),
        "vocabulary_hash": pl.String(),
    },
    ("cdm_table", "row_id", "site", "resource_type", "resource_id"),
)


def lake_tables(version: CdmVersion, *, vocabulary: bool, lineage: bool) -> list[LakeTable]:
    """The tables of a version that are read from PostgreSQL, those of the CDM first."""
    tables = [_standard_table("cdm", name, version) for name in CDM_TABLES]
    if vocabulary:
        installed = [name for name in VOCABULARY_TABLES if name in tables_of(version)]
        tables += [_standard_table("vocab", name, version) for name in installed]
    return [*tables, _ROW_SOURCE] if lineage else tables


def type_name(kind: pl.DataType) -> str:
    return _TYPE_NAMES[kind]


@cache
def _standard_table(folder: str, name: str, version: CdmVersion) -> LakeTable:
    columns = {field.name: _type(field) for field in fields(name, version)}
    return LakeTable(folder, name, columns, _order(name), _DATES.get(name))


def _type(field: Field) -> pl.DataType:
    """As in the database, where row ids are bigint and concept ids integer; NUMERIC is a double (EXACT_NUMBER)."""
    match field.datatype:
        case "integer":
            return pl.Int64() if field.is_row_id else pl.Int32()
        case "float":
            return pl.Float64()
        case "date":
            return pl.Date()
        case "datetime":
            return pl.Datetime("us")
    return pl.String()


def _order(name: str) -> tuple[str, ...]:
    """By person, so that a query for some persons skips most row groups; then by what makes the order the same again."""
    persons = [field.name for field in fields(name) if field.name in ("person_id", "subject_id")]
    key = primary_key(name)
    columns = fields(name)
    rest = [key] if key else [field.name for field in columns if field.required] or [field.name for field in columns]
    return tuple(dict.fromkeys([*persons, *rest]))
