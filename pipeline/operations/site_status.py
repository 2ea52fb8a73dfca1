"""Where each site stands: what was published, what runs, waits and failed, and what comes next. Counts, times and sentences
without patient data; read from `etl`, and from what `pipeline.orchestration.site_runs` read of Dagster. Words and layout
belong in `pipeline/commands/status.py`, what is wrong with it all in the rules of the alerts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from omop_schema.exports import OPEN_STATES, ExportKind, ExportState, sql_values
from pipeline.core.settings import SiteSettings
from pipeline.extract.notes import export_notes
from pipeline.extract.request_budget import requests_in_hour
from pipeline.operations.alerts.nights import is_nightly
from pipeline.quality.report import UnmappedCode, unmapped_by_site, vanished_counts, vanished_sentences
from pipeline.warehouse.export_jobs import sites_with_exports
from pipeline.warehouse.next_kick_offs import next_kick_offs
from pipeline.warehouse.runtime import Runtime

__all__ = [
    "DagsterRuns",
    "FailedExport",
    "OpenExport",
    "Requests",
    "SiteRun",
    "SiteRuns",
    "SiteStatus",
    "Waiting",
    "site_statuses",
]


@dataclass(frozen=True)
class SiteRun:
    """A run of Dagster; `status` is its own word, such as SUCCESS. Times are UTC."""

    run_id: str
    job: str
    status: str
    created_at: datetime
    ended_at: datetime | None = None


@dataclass(frozen=True)
class SiteRuns:
    """What Dagster does with a site. `next_run`: the schedule's next time; None where the schedule is off. `daemon`: whether it
    has reported lately; without it, neither schedule nor sensor does anything."""

    schedule: bool
    sensor: bool
    daemon: bool
    next_run: datetime | None = None
    last: SiteRun | None = None
    unfinished: tuple[SiteRun, ...] = ()


@dataclass(frozen=True)
class DagsterRuns:
    """`daemon`: as of each site."""

    daemon: bool
    sites: Mapping[str, SiteRuns]


@dataclass(frozen=True)
class OpenExport:
    """An export that is not loaded yet."""

    export: int
    group: str | None
    state: str
    progress: str | None
    next_look: datetime | None


@dataclass(frozen=True)
class Waiting:
    """A group that may not be asked for, or whose kick-off was refused for now. `attempts`: refused so many times."""

    group: str
    until: datetime
    why: str
    attempts: int = 0


@dataclass(frozen=True)
class FailedExport:
    """The last export of a group that ended without files."""

    export: int
    kind: str
    group: str | None
    state: str
    error: str | None


@dataclass(frozen=True)
class Requests:
    """Sent to the site since the hour began."""

    this_hour: int
    budget: int | None

    @property
    def is_spent(self) -> bool:
        return self.budget is not None and self.this_hour >= self.budget


@dataclass(frozen=True)
class SiteStatus:
    """One site. `is_nightly`: it has something that can run by itself; `runs` is None where it has not, and where there has
    been no Dagster in this home."""

    site: str
    is_nightly: bool
    last_export: int | None
    last_published: datetime | None
    runs: SiteRuns | None
    running: tuple[OpenExport, ...]
    waiting: tuple[Waiting, ...]
    failed: tuple[FailedExport, ...]
    #: the last export's error, also of one that goes on by itself
    last_error: str | None
    requests: Requests
    open_dead_letters: int
    #: sentences: what the groups' last exports lack, and what the site said of them
    exports_lack: tuple[str, ...]
    unmapped: tuple[UnmappedCode, ...]

    @property
    def state(self) -> str:
        """failed, running, waiting, off (its schedule), never (published), or ok."""
        if self.failed:
            return "failed"
        if self.running or (self.runs and self.runs.unfinished):
            return "running"
        if self.waiting:
            return "waiting"
        if self.is_nightly and not (self.runs and self.runs.schedule):
            return "off"
        return "ok" if self.last_published else "never"


def site_statuses(
    connection: psycopg.Connection, runtime: Runtime, dagster: DagsterRuns | None, *, most_unmapped: int = 3
) -> Iterator[SiteStatus]:
    """Of the sites of sites.yaml and of those of which something was loaded, by name. `connection` has the etl schema on
    its search_path."""
    unmapped = unmapped_by_site(connection, most=most_unmapped)
    for name in sorted({*runtime.settings.sites, *sites_with_exports(connection)}):
        known = runtime.settings.sites.get(name)
        last = _last_published(connection, name)
        yield SiteStatus(
            name,
            known is not None and is_nightly(known),
            last[0] if last else None,
            last[1] if last else None,
            dagster.sites.get(name) if dagster else None,
            tuple(_open(connection, name)),
            tuple(_waiting(connection, known, name, runtime.clock.now())),
            tuple(_failed(connection, known, name)),
            _last_error(connection, name),
            _requests(connection, known, name, runtime.clock.now()),
            _dead_letters(connection, name),
            tuple(_lacks(connection, name)),
            unmapped.get(name, ()),
        )


def _last_published(connection: psycopg.Connection, site: str) -> tuple[int, datetime] | None:
    return connection.execute(
        f"SELECT export_id, published_at FROM export_job WHERE site = %s AND state = '{ExportState.PUBLISHED}'"
        f" AND kind <> '{ExportKind.REPLAY}' ORDER BY published_at DESC LIMIT 1",
        (site,),
    ).fetchone()


def _open(connection: psycopg.Connection, site: str) -> Iterator[OpenExport]:
    """Exports at the site, and landed ones that wait to be loaded."""
    rows = connection.execute(
        "SELECT export_id, group_id, state, progress, next_poll_at FROM export_job WHERE site = %s"
        f" AND state IN {sql_values(OPEN_STATES)} ORDER BY export_id",
        (site,),
    ).fetchall()
    return (OpenExport(*row) for row in rows)


def _waiting(connection: psycopg.Connection, known: SiteSettings | None, site: str, now: datetime) -> Iterator[Waiting]:
    """Cool-downs that are in force, and kick-offs that were refused for now."""
    rows = connection.execute(
        "SELECT group_id, next_try FROM cool_down WHERE site = %s AND next_try > %s ORDER BY next_try", (site, now)
    ).fetchall()
    for group, next_try in rows:
        yield Waiting(group, next_try, "cool-down")
    for entry in next_kick_offs(connection, known) if known is not None else ():
        yield Waiting(entry.group_id, entry.next_try, entry.reason, entry.attempt)


def _failed(connection: psycopg.Connection, known: SiteSettings | None, site: str) -> Iterator[FailedExport]:
    """Of each kind and group the last export, where that has failed; not of groups that the settings name no more."""
    rows = connection.execute(
        "SELECT export_id, kind, group_id, state, error FROM ("
        " SELECT DISTINCT ON (kind, group_id) export_id, kind, group_id, state, error FROM export_job WHERE site = %s"
        " ORDER BY kind, group_id, export_id DESC) AS last"
        f" WHERE state IN {sql_values((ExportState.FAILED, ExportState.GONE))} ORDER BY export_id",
        (site,),
    ).fetchall()
    groups = known.groups if known is not None else ()
    for failed in (FailedExport(*row) for row in rows):
        if failed.kind != ExportKind.BULK or not groups or failed.group in groups:
            yield failed


def _last_error(connection: psycopg.Connection, site: str) -> str | None:
    row = connection.execute(
        "SELECT export_id, state, error FROM export_job WHERE site = %s ORDER BY export_id DESC LIMIT 1", (site,)
    ).fetchone()
    return f"export {row[0]} {row[1]}: {row[2]}" if row and row[2] else None


def _requests(connection: psycopg.Connection, known: SiteSettings | None, site: str, now: datetime) -> Requests:
    return Requests(requests_in_hour(connection, site, now), known.request_budget_per_hour if known else None)


def _dead_letters(connection: psycopg.Connection, site: str) -> int:
    row = connection.execute("SELECT count(*) FROM dead_letter_open WHERE site = %s", (site,)).fetchone()
    return int(row[0]) if row else 0


def _lacks(connection: psycopg.Connection, site: str) -> Sequence[str]:
    """Of each group's last landed export: types that did not come, what the site reported, what is not there any more."""
    rows = connection.execute(
        f"SELECT max(export_id) FROM export_job WHERE site = %s AND kind = '{ExportKind.BULK}' AND landed_at IS NOT NULL"
        " GROUP BY group_id ORDER BY 1",
        (site,),
    ).fetchall()
    ids = [row[0] for row in rows]
    return [*export_notes(connection, ids).sentences(), *vanished_sentences(vanished_counts(connection, ids))]
