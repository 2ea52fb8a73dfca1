"""Facts that two resources bring, counted by the rules of `duplicates/*.csv`. No row changes because of one.

Of the persons whose rows this publication changed; all of them where an empty warehouse is filled. A night in which
nothing changed asks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.publication.sql import Database
from pipeline.publication.tables import table_names
from pipeline.transform.mapping.duplicate_rules import DuplicateRule, concept_column, type_column

__all__ = ["count_duplicates"]


def count_duplicates(db: Database, rules: Sequence[DuplicateRule], *, everybody: bool) -> list[dict[str, Any]]:
    """rule, table, facts that are there more than once, and rows beyond the first of each; rules that find none are left
    out. Reads `affected_person` unless `everybody`."""
    if not rules or not (everybody or db.value("count_affected", persons="affected_person")):
        return []
    found = []
    for rule in rules:
        ((facts, rows),) = db.rows(
            "duplicates",
            {"everybody": everybody, "types": list(rule.types), "least_types": 2 if rule.types else 0},
            **table_names(rule.table),
            concept=str(concept_column(rule.table)),
            type=str(type_column(rule.table)),
            same=", ".join(f"row.{name}" for name in rule.same),
        )
        if facts:
            found.append({"rule": rule.name, "table": rule.table, "facts": facts, "rows": rows})
    return found
