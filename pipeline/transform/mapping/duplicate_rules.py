"""Rules about duplicates as data: `duplicates/*.csv`. By which columns rows of two resources say the same thing.

Rows of CSV files → typed rules, with a problem for everything that is wrong. They are counted by
`pipeline.publication.steps.duplicates`, and applied by option in `pipeline.transform.duplicates`.
"""

from __future__ import annotations

from dataclasses import dataclass

from omop_schema.cdm_fields import polars_schema
from pipeline.core.line_codes import IssueCode
from pipeline.transform.mapping.sources import MappingProblem, Row
from pipeline.transform.routing import EVENT_COLUMNS

__all__ = ["COUNTED_ELSEWHERE", "FACT", "DuplicateRule", "concept_column", "duplicate_rules", "type_column"]

#: Why a row is left out, and a resource of which no other row is left is excluded.
COUNTED_ELSEWHERE = IssueCode.COUNTED_ELSEWHERE
#: Before the place of a type, from 0: the name of a fact about a datum, and of references to it.
FACT = "duplicate_"


@dataclass(frozen=True)
class DuplicateRule:
    """Rows of `table` of one person, of two resources or more, that are equal in the columns `same`, are one datum."""

    name: str
    table: str
    same: tuple[str, ...]
    #: Type concepts of which rows of two or more must be among them, the one that counts first; empty: the types do not
    #: matter, and nothing is ever left out
    types: tuple[int, ...]


def concept_column(table: str) -> str | None:
    """What a row of a table is about: `condition_concept_id` of condition_occurrence."""
    return next((name for name in polars_schema(table) if _is_own(table, name, "_concept_id")), None)


def type_column(table: str) -> str | None:
    return next((name for name in polars_schema(table) if _is_own(table, name, "_type_concept_id")), None)


def _is_own(table: str, column: str, end: str) -> bool:
    return column == f"{table.partition('_')[0]}{end}"


#: Tables of events whose rows have a concept and a type.
_TABLES = [table for table in EVENT_COLUMNS if concept_column(table) and type_column(table)]


def duplicate_rules(rows: list[Row], problems: list[MappingProblem]) -> tuple[DuplicateRule, ...]:
    """The rules of the files; what is wrong goes to `problems`, and is left out."""
    found = []
    for row in rows:
        table, same = row.values["table"], tuple(name.strip() for name in row.values["same"].split("|"))
        types = tuple(part.strip() for part in row.values.get("types", "").split("|") if part.strip())
        reason = _wrong(table, same, types)
        if reason:
            problems.append(row.problem(reason))
        else:
            found.append(DuplicateRule(row.values["name"], table, same, tuple(int(text) for text in types)))
    return tuple(found)


def _wrong(table: str, same: tuple[str, ...], types: tuple[str, ...]) -> str | None:
    """The first thing that is wrong, for people."""
    if table not in _TABLES:
        return f"there is no table of events {table!r} with a concept and a type; there are {', '.join(_TABLES)}"
    concept, of_type = concept_column(table), type_column(table)
    unknown = [name for name in same if name not in polars_schema(table)]
    checks = {
        f"{table} has no column {', '.join(map(repr, unknown))}": not unknown,
        "same names a column twice": len(set(same)) == len(same),
        f"same must hold {concept}: rows about different things are no duplicates": concept in same,
        "types must be concept ids joined by |": all(text.isdecimal() for text in types),
        f"types must be two or more, and {of_type} not in same": not types
        or (len(set(types)) > 1 and of_type not in same),
    }
    return next((reason for reason, is_right in checks.items() if not is_right), None)
