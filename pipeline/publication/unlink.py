"""Rows that go: links to them are taken out of the rows of others, and addresses that nobody has any more go too.

Used by publication and by erasing. Not here: which rows go (`steps.former_rows`, `removed_persons`, `pipeline.erasure.rows`).
"""

from __future__ import annotations

from pipeline.publication.link_roles import roles_to
from pipeline.publication.sql import Database
from pipeline.publication.tables import place_names

__all__ = ["remove_unused_locations", "unlink"]


def unlink(db: Database, target: str, removed: str) -> None:
    """Take links to rows that go out of the rows of others: they wait for them to come back.

    `target`: an entity table, or visit_detail for sub-encounters, whose rows `removed` (a temporary table: surrogate_id,
    row_id) lists. Nothing waits for a row without surrogate_id. Rows on a sub-encounter keep to that when its visit
    goes: see `steps.visits`.
    """
    roles = roles_to("visit_occurrence" if target == "visit_detail" else target)
    links = [(role, place_names(place, target)) for role in roles for place in role.places]
    for role, names in links:  # all of them, before any row is changed
        db.execute("links_wait", {"role": role.name, "by_row": role.by_row}, removed=removed, **names)
    for _, names in links:
        db.execute("unlink_rows", removed=removed, **names)


def remove_unused_locations(db: Database) -> int:
    """Delete the rows of `pg_temp.left_location` (row_id) that no resource and no row has any more; how many. They are
    in `pg_temp.unused_location`."""
    return db.execute("remove_unused_locations")
