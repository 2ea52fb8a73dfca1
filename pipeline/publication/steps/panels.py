"""Panels and their members, which are resources of their own: rows of a member get the id of the panel's row.

Only where a site's option `panel_row` gives panels without a value a row. Components of one resource are linked by
`events.link_rows`. Fact: `panel_member` about the member, left by the panel; of several panels the least counts.
"""

from __future__ import annotations

from pipeline.core.settings import SiteSettings
from pipeline.publication.sql import Database, fragment
from pipeline.publication.tables import event_names, table_names

__all__ = ["link_members"]

#: Tables of members, which have a column for the panel's id.
_TABLES = ("measurement", "observation")

#: Tables that panels have rows in, and to whose rows others of the same resource belong: components, and results of what has
#: no value itself. Of a panel with rows in several the first counts: a report of a CT is a procedure.
_EVENTS = (
    *_TABLES,
    *("condition_occurrence", "drug_exposure", "procedure_occurrence", "device_exposure", "specimen"),
)


def link_members(db: Database, site: SiteSettings) -> None:
    """Set, move and take away the link of members to their panel. Runs after rows and facts of the export are there."""
    if site.mapping.panel_row != "always":
        return
    db.execute("panel_members")
    own_rows = " UNION ALL ".join(
        fragment(
            "own_rows_of_panel",
            **{
                **_names(db, table),
                "place": str(place),
                "field": _field(db, table),
                "is_own_row": _is_own_row(db, table) if table in _TABLES else "true",
            },
        )
        for place, table in enumerate(_EVENTS)
    )
    db.execute("panel_rows", own_rows=own_rows)
    for table in _TABLES:
        db.execute("link_members", **{**event_names(table, table), "is_own_row": _is_own_row(db, table)})


def _names(db: Database, table: str) -> dict[str, str]:
    return {**table_names(table), "cdm": db.cdm, "vocab": db.vocab}


def _field(db: Database, table: str) -> str:
    return fragment("field_concept", **_names(db, table))


def _is_own_row(db: Database, table: str) -> str:
    """Not that of a component or a result, which belongs to another row of its own resource (in `table` or another)."""
    of_resource = (
        fragment("is_of_own_resource", **{**event_names(table, other), "field": _field(db, other)}) for other in _EVENTS
    )
    names = event_names(table, table)
    return f"(row.{names['event_id']} IS NULL OR NOT ({' OR '.join(f'({one})' for one in of_resource)}))"
