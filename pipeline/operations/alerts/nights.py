"""A site's nights by its own schedule and zone, and what each of its groups has done since the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from cronsim import CronSim

from omop_schema.exports import OPEN_STATES, ExportKind, sql_values
from pipeline.core.settings import SiteSettings

__all__ = ["NIGHTLY_KINDS", "GroupNight", "group_nights", "is_nightly", "last_tick", "was_tried"]

#: What a night asks for.
NIGHTLY_KINDS = (ExportKind.BULK, ExportKind.CRAWL)


@dataclass(frozen=True)
class GroupNight:
    """A group's past as of now; times are UTC, None: never."""

    group: str
    first_requested: datetime | None
    last_requested: datetime | None
    last_published: datetime | None
    is_open: bool


_PAST = f"""
SELECT coalesce(group_id, ''), min(requested_at), max(requested_at), max(published_at),
       bool_or(state IN {sql_values(OPEN_STATES)})
FROM export_job WHERE site = %s AND kind IN {sql_values(NIGHTLY_KINDS)} GROUP BY 1
"""


def is_nightly(site: SiteSettings) -> bool:
    """Whether a night of this site asks for anything: a site that is loaded from folders alone has no nights."""
    return site.fhir_url is not None and bool(site.groups or site.patients_file)


def last_tick(site: SiteSettings, before: datetime) -> datetime:
    """When the site's schedule was last due, at `before` at the latest; UTC. Its zone's clock counts, summer time too."""
    local = before.astimezone(site.zone) + timedelta(minutes=1)  # CronSim looks for what is strictly earlier
    return next(CronSim(site.schedule, local, reverse=True)).astimezone(UTC)


def group_nights(connection: psycopg.Connection, site: SiteSettings) -> Sequence[GroupNight]:
    """One for each of the site's groups as they are in the settings; for a site that is crawled, one for all lists."""
    rows = [GroupNight(*row) for row in connection.execute(_PAST, (site.name,)).fetchall()]
    if site.groups:
        known = {row.group: row for row in rows}
        return [known.get(group, GroupNight(group, None, None, None, is_open=False)) for group in site.groups]
    if not rows:
        return []
    return [
        GroupNight(
            "the crawl",
            min((row.first_requested for row in rows if row.first_requested), default=None),
            max((row.last_requested for row in rows if row.last_requested), default=None),
            max((row.last_published for row in rows if row.last_published), default=None),
            is_open=any(row.is_open for row in rows),
        )
    ]


def was_tried(connection: psycopg.Connection, site: SiteSettings, tick: datetime) -> bool:
    """Whether a kick-off since then ended before there was an export: a run failed, or the server refused it for now."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM run_failure WHERE site = %(site)s AND failed_at >= %(tick)s)"
        " OR EXISTS (SELECT FROM next_kick_off WHERE site = %(site)s)",
        {"site": site.name, "tick": tick},
    ).fetchone()
    return bool(row and row[0])
