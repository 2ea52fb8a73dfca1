"""What the frames in staging look like: kinds and their columns. A kind is a CDM table or one of the pipeline's own frames."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from omop_schema.cdm_fields import polars_schema, primary_key
from omop_schema.contact import CONTACT_DATE, CONTACT_TABLES

__all__ = [
    "CODE_SET",
    "EVENT_LINK",
    "IDENTIFIER_KEY",
    "ISSUE",
    "KEY_COLUMNS",
    "MAPPING",
    "OUTCOME",
    "OUTCOME_SCHEMA",
    "REFERENCE",
    "REFERENCE_VALUE",
    "REJECTION",
    "REJECTION_SCHEMA",
    "SCHEMAS",
    "UNCHANGED",
    "UNMAPPED",
    "VALUE_CHECK",
    "WAITING",
    "FileLines",
    "exact_kind",
    "staged_columns",
]

#: Columns of every staged frame besides the table's own: identity and origin.
KEY_COLUMNS: dict[str, pl.DataType] = {
    "surrogate_id": pl.Int64(),
    "row_key": pl.Int64(),
    "file_number": pl.Int32(),
    "line": pl.Int64(),
}

OUTCOME, REJECTION, REFERENCE, REFERENCE_VALUE = "outcome", "rejection", "reference", "reference_value"
ISSUE, MAPPING, UNMAPPED, UNCHANGED = "issue", "mapping", "unmapped", "unchanged"
VALUE_CHECK = "value_check"
EVENT_LINK = "event_link"
#: Code sets that were looked up, each once a process: they are of no line.
CODE_SET = "code_set"
#: Keys by which references name their target, instead of its id.
IDENTIFIER_KEY = "identifier_key"
#: Lines, with their places, that are transformed together with those of other chunks.
WAITING = "waiting"

_LINE_SCHEMA = {
    "file_number": pl.Int32,
    "line": pl.Int64,
    "byte_offset": pl.Int64,
    "byte_length": pl.Int64,
    "raw_hash_high": pl.Int64,
    "raw_hash_low": pl.Int64,
    "resource_type": pl.String,
    "resource_id": pl.String,
    "surrogate_id": pl.Int64,
}

#: One row a line that is not unchanged: `outcome` is loaded, excluded (with `reason`) or rejected. `content_hash` is
#: NULL where it has no comparable content (a deletion).
OUTCOME_SCHEMA = {**_LINE_SCHEMA, "outcome": pl.String, "reason": pl.String, "content_hash": pl.Int64}
#: One row a rejected line. `cause`: surrogate id of the resource that is missing, if that is why.
REJECTION_SCHEMA = {
    **_LINE_SCHEMA,
    "stage": pl.String,
    "code": pl.String,
    "path": pl.String,
    "reason": pl.String,
    "cause": pl.Int64,
}

SCHEMAS: dict[str, dict[str, type[pl.DataType]]] = {
    OUTCOME: OUTCOME_SCHEMA,
    REJECTION: REJECTION_SCHEMA,
    REFERENCE: {"from_surrogate_id": pl.Int64, "role": pl.String, "to_surrogate_id": pl.Int64, "state": pl.String},
    REFERENCE_VALUE: {
        "surrogate_id": pl.Int64,
        "name": pl.String,
        "owner_surrogate_id": pl.Int64,
        "value": pl.String,
        "file_number": pl.Int32,
        "line": pl.Int64,
    },
    ISSUE: {"surrogate_id": pl.Int64, "code": pl.String, "path": pl.String},
    #: rows of events by whether their code has a concept: what mapping rates are about
    #: codes of an element and system, and those with a concept; `is_event`: the code decides what the row is
    MAPPING: {
        "resource_type": pl.String,
        "table": pl.String,
        "element": pl.String,
        "system": pl.String,
        "is_event": pl.Boolean,
        "mapped": pl.Int64,
        "total": pl.Int64,
    },
    #: a coding without a concept in a resource's element; `coding_id` stands for all from resource_type to display
    UNMAPPED: {
        "surrogate_id": pl.Int64,
        "file_number": pl.Int32,
        "line": pl.Int64,
        "coding_id": pl.Int64,
        "resource_type": pl.String,
        "element": pl.String,
        "system": pl.String,
        "code": pl.String,
        "display": pl.String,
        "text": pl.String,
        "tried": pl.String,
        "count": pl.Int64,
    },
    #: numbers that a rule about numbers found (`pipeline.transform.value_checks`), and what was done with them
    VALUE_CHECK: {
        "surrogate_id": pl.Int64,
        "file_number": pl.Int32,
        "line": pl.Int64,
        "finding": pl.String,
        "action": pl.String,
        "concept_id": pl.Int64,
        "unit_concept_id": pl.Int64,
        "count": pl.Int64,
    },
    #: a row (cdm_table, row_key) that belongs to another row (event_table, event_row_key) of the same resource
    EVENT_LINK: {
        "surrogate_id": pl.Int64,
        "file_number": pl.Int32,
        "line": pl.Int64,
        "cdm_table": pl.String,
        "row_key": pl.Int64,
        "event_table": pl.String,
        "event_row_key": pl.Int64,
    },
    IDENTIFIER_KEY: {"surrogate_id": pl.Int64},
    CODE_SET: {"asked": pl.String},
    UNCHANGED: {"surrogate_id": pl.Int64, "file_number": pl.Int32, "line": pl.Int64},
}


@dataclass(frozen=True)
class FileLines:
    """What transform counted of one landed file, or of a piece of it."""

    file_number: int
    lines: int
    unchanged: int
    #: of which with other bytes and the same content
    unchanged_by_content: int = 0


def exact_kind(table: str) -> str:
    """Where the texts of a table's long numbers are: parts of the same names, with surrogate_id, row_key and texts."""
    return f"exact_{table}"


def staged_columns(table: str) -> dict[str, pl.DataType]:
    """Columns and types of a staged frame: KEY_COLUMNS, of tables that have it the day of contact, then the table's columns
    without its generated id."""
    own_id = primary_key(table)
    columns = {name: kind for name, kind in polars_schema(table).items() if name != own_id or table == "death"}
    contact: dict[str, pl.DataType] = {CONTACT_DATE: pl.Date()} if table in CONTACT_TABLES else {}
    return {**KEY_COLUMNS, **contact, **columns}
