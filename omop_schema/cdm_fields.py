"""The fields of the OMOP CDM as data, from `cdm_v5_4_fields.csv` and `cdm_v5_5_fields.csv`, and what follows for frames.

Without a version, names and functions here mean the newest one, which has all tables and columns of the older ones: staged
frames are in its form, whatever the database's version. `tables_of` and `fields` give those of a version.

Apart from `omop_schema.cdm`, which makes DDL of them, because every worker process of the transform needs them and
none needs SQLAlchemy, whose import takes longer than all of theirs.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import polars as pl

from omop_schema.versions import NEWEST_CDM_VERSION, CdmVersion

__all__ = [
    "CDM_TABLES",
    "TABLES",
    "VOCABULARY_TABLES",
    "Field",
    "column_length",
    "fields",
    "lines_of",
    "polars_schema",
    "primary_key",
    "required_columns",
    "sequence_name",
    "tables_of",
]

_FOLDER = Path(__file__).resolve().parent
_VARCHAR = re.compile(r"varchar\((\d+|max)\)")


@dataclass(frozen=True)
class Field:
    """One line of a version's file of fields."""

    table: str
    name: str
    #: integer, float, date, datetime, varchar(n) or varchar(max)
    datatype: str
    required: bool
    is_primary_key: bool
    #: (table, field) that it refers to.
    foreign_key: tuple[str, str] | None
    #: Domain that a concept in this field should have; empty where the specification names none.
    concept_domain: str

    @property
    def is_row_id(self) -> bool:
        """True for identifiers of rows, which are 64-bit here; concept ids stay 32-bit as OHDSI's tools read them."""
        is_identifier = self.name.endswith("_id") or self.name.startswith("fact_id")
        return self.datatype == "integer" and is_identifier and not self.name.endswith("concept_id")


def lines_of(name: str) -> list[dict[str, str]]:
    """The lines of one of the package's CSV files."""
    with (_FOLDER / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@cache
def _fields_of(version: CdmVersion) -> Mapping[str, tuple[Field, ...]]:
    by_table: dict[str, list[Field]] = {}
    for line in lines_of(f"cdm_v{version.replace('.', '_')}_fields.csv"):
        field = Field(
            table=line["table"],
            name=line["field"],
            datatype=line["datatype"],
            required=line["required"] == "yes",
            is_primary_key=line["primary_key"] == "yes",
            foreign_key=(line["fk_table"], line["fk_field"]) if line["fk_table"] else None,
            concept_domain=line["fk_domain"],
        )
        by_table.setdefault(field.table, []).append(field)
    return MappingProxyType({table: tuple(content) for table, content in by_table.items()})


def tables_of(version: CdmVersion) -> tuple[str, ...]:
    """All tables of a version (5.4: 39, 5.5: 42), in the order of the specification."""
    return tuple(_fields_of(version))


#: All tables of the newest version.
TABLES: tuple[str, ...] = tables_of(NEWEST_CDM_VERSION)

#: Tables of the standardised vocabularies; they live in a schema of their own. The last three are new in 5.5.
VOCABULARY_TABLES: tuple[str, ...] = (
    "concept",
    "vocabulary",
    "domain",
    "concept_class",
    "concept_relationship",
    "relationship",
    "concept_synonym",
    "concept_ancestor",
    "source_to_concept_map",
    "drug_strength",
    "pack_content",
    "concept_metadata",
    "concept_relationship_metadata",
)

#: The other tables, the same in all versions. `cohort` and `cohort_definition`, OHDSI's results tables, are among them.
CDM_TABLES: tuple[str, ...] = tuple(table for table in TABLES if table not in VOCABULARY_TABLES)


def fields(table: str, version: CdmVersion = NEWEST_CDM_VERSION) -> tuple[Field, ...]:
    """The fields of a table in their order. KeyError for a name that is no table of that version."""
    return _fields_of(version)[table]


def primary_key(table: str) -> str | None:
    """The primary key column; None for tables that have none (death, episode_event, concept_ancestor …)."""
    return next((field.name for field in fields(table) if field.is_primary_key), None)


def required_columns(table: str) -> tuple[str, ...]:
    """The NOT NULL columns."""
    return tuple(field.name for field in fields(table) if field.required)


def column_length(table: str, column: str) -> int | None:
    """Characters that a varchar column holds; None where there is no limit or the column is no text.

    KeyError for a column that the table does not have.
    """
    field = next((field for field in fields(table) if field.name == column), None)
    if field is None:
        raise KeyError(f"{table}.{column}")
    match = _VARCHAR.fullmatch(field.datatype)
    return int(match[1]) if match and match[1] != "max" else None


def sequence_name(table: str) -> str | None:
    """Name, without schema, of the sequence that fills the primary key of a CDM table."""
    key = primary_key(table)
    return f"{table}_{key}_seq" if key and table in CDM_TABLES else None


_POLARS_TYPES: Mapping[str, pl.DataType] = MappingProxyType(
    {
        "integer": pl.Int64(),
        "float": pl.Float64(),
        "date": pl.Date(),
        "datetime": pl.Datetime("us"),
    }
)


@cache
def polars_schema(table: str) -> dict[str, pl.DataType]:
    """Column → type of a staging frame of this table, in the order of the specification.

    Every integer is Int64, concept ids included: joins never need a cast. NUMERIC columns are Float64, whose
    shortest text has the 15 significant digits that FHIR decimals are kept to.
    """
    return {field.name: _POLARS_TYPES.get(field.datatype, pl.String()) for field in fields(table)}
