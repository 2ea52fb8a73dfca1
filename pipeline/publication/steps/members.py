"""What groups hold: kept as what their newest exports hold (`pipeline.publication.seen`), and what they hold no more.

`etl.absent_resource` has a row for each resource that a group held once and that its newest published export does not
hold, with the last one that did. So a load costs one comparison of two sorted files, not a row a resource and group,
and whether a resource has vanished is asked of the few that are absent somewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import polars as pl
from psycopg.types.json import Jsonb

from pipeline.publication.context import Publication
from pipeline.publication.seen import held, read_held
from pipeline.publication.steps.completeness import complete_types
from pipeline.warehouse.copying import read_frame, temporary_table

__all__ = ["GroupExport", "group_exports", "held_now", "newest", "note_members"]

#: Resources that are compared at a time: a hash table of so many ids is 200 MB.
_AT_A_TIME = 8_000_000


class _Place(NamedTuple):
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
    #: What the group held before is not known: any resource may have been there until this export.
    earlier_is_lost: bool

    @property
    def place(self) -> _Place:
        return _Place(self.transaction_time, self.export_id)


def group_exports(p: Publication) -> list[GroupExport]:
    """All of the site's that are published, oldest first."""
    rows = p.connection.execute(
        "SELECT export_id, own.group_id, transaction_time, members, complete_types, earlier_is_lost"
        " FROM group_export AS own JOIN export_job USING (export_id) WHERE own.site = %s"
        " ORDER BY transaction_time, export_id",
        (p.export.site,),
    ).fetchall()
    return [
        GroupExport(export_id, group, when, members, frozenset(types), earlier_is_lost)
        for export_id, group, when, members, types, earlier_is_lost in rows
    ]


def newest(exports: list[GroupExport]) -> dict[str, GroupExport]:
    """Group → its newest export."""
    return {export.group: export for export in exports}


def held_now(p: Publication, export: GroupExport) -> pl.LazyFrame | None:
    """Column surrogate_id: what an export of a group held; None: not known any more."""
    if export.export_id == p.export.export_id:
        return _of_this_export(p)
    return read_held(p.settings.home, p.export.site, export.export_id, export.members)


def _of_this_export(p: Publication) -> pl.LazyFrame:
    return held(p.staged, [file.number for file in p.export.deleted])


def note_members(p: Publication, group: str | None) -> None:
    """Write what this export says of its group (None: of no group), and set `p.came_back`.

    The export may be older than others of its group, and published for the second time.
    """
    ours = _of_this_export(p)
    if group is not None:
        _note_group(p, group, ours)
    absent = read_frame(
        p.connection,
        "SELECT DISTINCT surrogate_id FROM absent_resource JOIN export_job ON export_id = last_export_id"
        " WHERE site = %s",
        {"surrogate_id": pl.Int64},
        (p.export.site,),
    )
    if absent.is_empty():
        return
    p.came_back = absent.lazy().join(ours, on="surrogate_id", how="semi").collect(engine="streaming")
    if group is not None:
        _forget_absent(p, group)


def _note_group(p: Publication, group: str, ours: pl.LazyFrame) -> None:
    members = ours.select(pl.col("surrogate_id").n_unique()).collect(engine="streaming").item()
    others = [export for export in group_exports(p) if export.group == group]
    others = [export for export in others if export.export_id != p.export.export_id]
    place = _Place(p.export.transaction_time, p.export.export_id)
    later = [export for export in others if export.place > place]
    earlier = [export for export in others if export.place < place]
    if later:
        last = held_now(p, later[-1])
        # Where the newest one's members are lost, nothing vanishes for want of them (`vanished`).
        missing = [] if last is None else list(_difference(ours, last, members))
        lost = False
    else:
        before = held_now(p, earlier[-1]) if earlier else None
        missing = [] if before is None else list(_difference(before, ours, earlier[-1].members))
        lost = before is None and bool(earlier)
    _save_absent(p, group, missing, p.export.export_id if later else earlier[-1].export_id if earlier else 0)
    p.connection.execute(
        "INSERT INTO group_export (export_id, site, group_id, members, complete_types, earlier_is_lost)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (export_id) DO UPDATE SET (members, complete_types, earlier_is_lost)"
        " = ROW(excluded.members, excluded.complete_types, group_export.earlier_is_lost OR excluded.earlier_is_lost)",
        (p.export.export_id, p.export.site, group, members, Jsonb(sorted(complete_types(p))), lost),
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


def _save_absent(p: Publication, group: str, missing: list[pl.DataFrame], last_export_id: int) -> None:
    if not missing:
        return
    temporary_table(p.connection, "missing_members", pl.concat(missing))
    p.connection.execute(
        "INSERT INTO absent_resource (surrogate_id, group_id, last_export_id)"
        " SELECT surrogate_id, %s, %s FROM pg_temp.missing_members"
        " ON CONFLICT (surrogate_id, group_id) DO UPDATE SET last_export_id = excluded.last_export_id"
        " WHERE (SELECT (transaction_time, export_id) FROM export_job WHERE export_id = excluded.last_export_id)"
        " > (SELECT (transaction_time, export_id) FROM export_job WHERE export_id = absent_resource.last_export_id)",
        (group, last_export_id),
    )


def _forget_absent(p: Publication, group: str) -> None:
    """What the group's newest export holds is not absent."""
    if p.came_back.is_empty() or newest(group_exports(p))[group].export_id != p.export.export_id:
        return
    temporary_table(p.connection, "came_back", p.came_back)
    p.connection.execute(
        "DELETE FROM absent_resource AS absent USING pg_temp.came_back AS back"
        " WHERE absent.surrogate_id = back.surrogate_id AND absent.group_id = %s",
        (group,),
    )
