"""The members of groups: those of their newest exports (`pipeline.publication.members`), and who is a member no more.

`etl.absent_resource` has a row for each resource that a group had once and that its newest published export has
not, with the last one that did. So a load costs one comparison of two sorted files, not a row a resource and group,
and whether a resource has vanished is asked of the few that are absent somewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import polars as pl
from psycopg.types.json import Jsonb

from pipeline.publication.members import members_of, read_members
from pipeline.publication.sql import Database
from pipeline.publication.steps.completeness import complete_types
from pipeline.publication.values import ID_SCHEMA, Incoming

__all__ = ["GroupExport", "current_members", "group_exports", "newest", "note_members"]

#: Resources that are compared at a time: a hash table of so many ids is 200 MB.
_AT_A_TIME = 8_000_000


class _Position(NamedTuple):
    """The order of exports."""

    transaction_time: datetime
    export_id: int


@dataclass(frozen=True)
class GroupExport:
    """One published export of a group, or the one that is being published."""

    export_id: int
    group: str
    transaction_time: datetime
    members: int
    complete_types: frozenset[str]
    #: The group's members before are not known: any resource may have been one until this export.
    earlier_is_lost: bool

    @property
    def position(self) -> _Position:
        return _Position(self.transaction_time, self.export_id)


def group_exports(db: Database, site: str) -> list[GroupExport]:
    """All of the site's that are published, oldest first."""
    return [
        GroupExport(export_id, group, when, members, frozenset(types), earlier_is_lost)
        for export_id, group, when, members, types, earlier_is_lost in db.rows("group_exports", {"site": site})
    ]


def newest(exports: list[GroupExport]) -> dict[str, GroupExport]:
    """Group → its newest export."""
    return {export.group: export for export in exports}


def current_members(incoming: Incoming, export: GroupExport) -> pl.LazyFrame | None:
    """Column surrogate_id: the members of an export of a group; None: not known any more."""
    if export.export_id == incoming.export.export_id:
        return members_of(incoming.staged, incoming.deletions)
    return read_members(incoming.settings.home, incoming.export.site, export.export_id, export.members)


def note_members(db: Database, incoming: Incoming, group: str | None) -> pl.DataFrame:
    """Write what this export says of its group (None: of no group). Returns the resources (surrogate_id) of the export
    that a group had been without.

    The export may be older than others of its group, and published for the second time.
    """
    ours = members_of(incoming.staged, incoming.deletions)
    if group is not None:
        _note_group(db, incoming, group, ours)
    absent = db.frame("absent_resources", {"surrogate_id": pl.Int64}, {"site": incoming.export.site})
    if absent.is_empty():
        return pl.DataFrame(schema=ID_SCHEMA)
    came_back = absent.lazy().join(ours, on="surrogate_id", how="semi").collect(engine="streaming")
    if group is not None:
        _forget_absent(db, incoming, group, came_back)
    return came_back


def _note_group(db: Database, incoming: Incoming, group: str, ours: pl.LazyFrame) -> None:
    export = incoming.export
    members = ours.select(pl.col("surrogate_id").n_unique()).collect(engine="streaming").item()
    others = [other for other in group_exports(db, export.site) if other.group == group]
    others = [other for other in others if other.export_id != export.export_id]
    position = _Position(export.transaction_time, export.export_id)
    later = [other for other in others if other.position > position]
    earlier = [other for other in others if other.position < position]
    if later:
        last = current_members(incoming, later[-1])
        # Where the newest one's members are lost, nothing vanishes because they are missing (`vanished`).
        missing = [] if last is None else list(_difference(ours, last, members))
        lost = False
    else:
        before = current_members(incoming, earlier[-1]) if earlier else None
        missing = [] if before is None else list(_difference(before, ours, earlier[-1].members))
        lost = before is None and bool(earlier)
    last_export_id = export.export_id if later else earlier[-1].export_id if earlier else 0
    if missing:
        db.put("missing_member", pl.concat(missing))
        db.execute("save_absent", {"group": group, "last_export_id": last_export_id})
    db.execute(
        "save_group_export",
        {
            "export_id": export.export_id,
            "site": export.site,
            "group": group,
            "members": members,
            "complete_types": Jsonb(sorted(complete_types(db, incoming))),
            "earlier_is_lost": lost,
        },
    )


def _difference(ours: pl.LazyFrame, others: pl.LazyFrame, size: int) -> Iterator[pl.DataFrame]:
    """Rows of `ours` that `others` has not, a range of ids after the other."""
    parts = max(1, -(-size // _AT_A_TIME))
    width = 2**64 // parts + 1
    for part in range(parts):
        low = part * width - 2**63
        in_range = pl.col("surrogate_id").is_between(low, min(low + width - 1, 2**63 - 1))
        of_ours = ours.filter(in_range).unique() if parts > 1 else ours.unique()
        of_others = others.filter(in_range) if parts > 1 else others
        found = of_ours.join(of_others, on="surrogate_id", how="anti").collect(engine="streaming")
        if not found.is_empty():
            yield found


def _forget_absent(db: Database, incoming: Incoming, group: str, came_back: pl.DataFrame) -> None:
    """What the group's newest export has is not absent."""
    exports = newest(group_exports(db, incoming.export.site))
    if not came_back.is_empty() and exports[group].export_id == incoming.export.export_id:
        db.put("came_back", came_back)
        db.execute("forget_absent", {"group": group})
