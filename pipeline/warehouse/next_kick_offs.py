"""`etl.next_kick_off`: kick-offs that were asked for and refused for now, and when the next try is due.

A cool-down (`etl.cool_down`) forbids a kick-off; an entry here says that one is due. Functions on a connection whose
search_path begins with the `etl` schema. They do not commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
from psycopg.rows import class_row

from omop_schema.exports import OPEN_STATES, ExportKind, sql_values
from pipeline.core.settings import SiteSettings

__all__ = ["NextKickOff", "due_kick_offs", "forget_next", "next_kick_offs", "plan_next"]

_FIRST_WAIT = timedelta(minutes=10)
_LONGEST_WAIT = timedelta(hours=2)

#: A server that asks for less is asked again after this, and from the second try on never sooner than by our back-off.
_SHORTEST_WAIT = timedelta(minutes=1)

_COLUMNS = "group_id, next_try, attempt, give_up_at, reason"


@dataclass(frozen=True)
class NextKickOff:
    """One row; times are UTC. `attempt` counts the tries that were refused for now, from 1."""

    group_id: str
    next_try: datetime
    attempt: int
    give_up_at: datetime
    reason: str


def plan_next(
    connection: psycopg.Connection,
    site: SiteSettings,
    group: str,
    now: datetime,
    reason: str,
    *,
    asked: datetime | None = None,
    not_before: datetime | None = None,
) -> datetime | None:
    """Keep when a kick-off that was refused at `now` is tried again; returns that time.

    By back-off of 10, 20, 40 … minutes, two hours at most, until a window after the first refusal; then None: the next
    schedule asks. `asked`: by the server's Retry-After instead, between a minute and a window. `not_before`: the end of
    a cool-down, which is the next try itself.
    """
    window = timedelta(hours=site.kickoff_window_hours)
    before = _of_group(connection, site, group)
    if before is not None and before.give_up_at <= now:
        before = None
    attempt = before.attempt + 1 if before else 1
    give_up_at = before.give_up_at if before else now + window
    if not_before is not None:
        next_try = not_before
        if before and before.next_try == not_before:  # asked once more inside the same cool-down: no further refusal
            attempt = before.attempt
        give_up_at = max(give_up_at, not_before + window)
    else:
        next_try = now + _wait(attempt, asked - now if asked else None, window)
        if asked is not None and attempt == 1:
            give_up_at = max(give_up_at, next_try + _LONGEST_WAIT)
    if next_try > give_up_at:
        forget_next(connection, site, group)
        return None
    connection.execute(
        f"INSERT INTO next_kick_off (site, client_id, {_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (site, client_id, group_id) DO UPDATE SET (next_try, attempt, give_up_at, reason)"
        " = ROW(excluded.next_try, excluded.attempt, excluded.give_up_at, excluded.reason)",
        [site.name, site.client_id or "", group, next_try, attempt, give_up_at, reason],
    )
    return next_try


def _wait(attempt: int, asked: timedelta | None, window: timedelta) -> timedelta:
    back_off: timedelta = min(_FIRST_WAIT * 2 ** min(attempt - 1, 10), _LONGEST_WAIT)
    if asked is None or asked <= timedelta():
        return back_off
    return min(max(asked, _SHORTEST_WAIT if attempt == 1 else back_off), window)


def forget_next(connection: psycopg.Connection, site: SiteSettings, group: str) -> None:
    """After a kick-off that was accepted, or refused for good."""
    connection.execute(
        "DELETE FROM next_kick_off WHERE site = %s AND client_id = %s AND group_id = %s",
        [site.name, site.client_id or "", group],
    )


def next_kick_offs(connection: psycopg.Connection, site: SiteSettings) -> list[NextKickOff]:
    """Of the site's groups as they are in the settings, the soonest first; those of groups with an open export are not."""
    with connection.cursor(row_factory=class_row(NextKickOff)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM next_kick_off AS next WHERE site = %s AND client_id = %s AND group_id = ANY(%s)"
            f" AND NOT EXISTS (SELECT FROM export_job AS job WHERE job.kind = '{ExportKind.BULK}' AND job.site = next.site"
            f" AND job.group_id = next.group_id AND job.state IN {sql_values(OPEN_STATES)})"
            " ORDER BY next_try, group_id",
            [site.name, site.client_id or "", list(site.groups)],
        ).fetchall()


def due_kick_offs(connection: psycopg.Connection, site: SiteSettings, now: datetime) -> Sequence[NextKickOff]:
    """Those whose time has come, and not yet passed by a window."""
    return [entry for entry in next_kick_offs(connection, site) if entry.next_try <= now < entry.give_up_at]


def _of_group(connection: psycopg.Connection, site: SiteSettings, group: str) -> NextKickOff | None:
    with connection.cursor(row_factory=class_row(NextKickOff)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM next_kick_off WHERE site = %s AND client_id = %s AND group_id = %s",
            [site.name, site.client_id or "", group],
        ).fetchone()
