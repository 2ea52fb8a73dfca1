"""One export's life, from the kick-off to landed files; used alike by the commands and by Dagster.

Each function does one step, saves what it learned before the next, and can be called again after any crash:

- `open_or_adopt` writes a `requested` row and commits before the kick-off is sent, and commits the status address
  before anything else happens. It adopts a group's open export instead of starting a second one.
- `poll_once` asks for the status once. `download` fetches the files that are not complete yet.
- A `requested` row without its process is an unknown state: the kick-off may have been sent, and Epic has no way to
  look for the job. Kicking off again could start a second export, so the row ends as `failed` and the group rests
  until its window has passed. Nothing is lost by that: exports are full, the next one holds everything.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

import psycopg

from pipeline.epic import bulk_export
from pipeline.epic.bulk_export import Manifest, StillRunning
from pipeline.epic.session import EpicSession
from pipeline.errors import (
    AcceptedWithoutAddress,
    AuthenticationRefused,
    ConfigurationError,
    CooldownActive,
    EpicOmopError,
    ExportGone,
    ExportNotReady,
    KickOffUnknown,
    LandingError,
    PermanentError,
    RemoteRefused,
    RemoteUnavailable,
    RequestBudgetSpent,
    SiteBusy,
    UnsafeRemote,
)
from pipeline.export_files import ExportDownload
from pipeline.landing.folder import ndjson_files
from pipeline.landing.store import LandedExport, LandingProgress, ProgressCallback
from pipeline.quality.export_notes import export_notes
from pipeline.runtime import Runtime
from pipeline.settings import SiteSettings
from pipeline.site_session import site_session
from pipeline.warehouse import crawls, export_jobs
from pipeline.warehouse.configured_sites import refuse_missing_site
from pipeline.warehouse.export_jobs import CoolDown, ExportJob, Kind

__all__ = [
    "ExportEvent",
    "SiteExport",
    "download",
    "export_groups",
    "export_site",
    "ingest_folder",
    "new_job",
    "open_or_adopt",
    "poll_once",
    "types_not_received",
]

_log = logging.getLogger(__name__)

#: A status call made by a sensor, the token included.
_STATUS_CALL_SECONDS = 20.0

#: Results are kept for 14 days (rule 7); an export whose status cannot be had for longer is given up.
_GIVE_UP_AFTER = timedelta(days=15)

#: Epic counts its window from when it saw the kick-off, by its own clock.
_WINDOW_MARGIN = timedelta(minutes=5)

#: A command that waits gives up after so many failed status calls in a row; the job stays open.
_FAILED_POLLS = 10

_MOST_JITTER = 0.1


@dataclass(frozen=True)
class ExportEvent:
    """Something that happened to a group's export, for whoever shows progress."""

    group: str
    state: str
    detail: str = ""
    landing: LandingProgress | None = None


@dataclass(frozen=True)
class SiteExport:
    """What came of a site's groups: what is landed, and why the others are not."""

    landed: tuple[LandedExport, ...] = ()
    failures: Mapping[str, EpicOmopError] = field(default_factory=dict)
    #: By export id: types that were asked for and did not come.
    missing_types: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    #: By export id: all that is to be told besides, a sentence each.
    notes: Mapping[int, Sequence[str]] = field(default_factory=dict)


EventCallback = Callable[[ExportEvent], None]


def open_or_adopt(
    runtime: Runtime,
    site: SiteSettings,
    group: str,
    *,
    since: datetime | None = None,
    session: EpicSession | None = None,
) -> ExportJob:
    """The group's open export, or a new one that is kicked off now; `since`: of what changed from then on.

    Returns a job in the state running, complete or landed. Raises CooldownActive inside the group's window (with
    the time of the next try), SiteBusy while another process kicks off, and what `bulk_export.kick_off` raises.
    """
    with runtime.connect() as connection, export_jobs.site_lock(connection, site.name, f"group {group}"):
        job = export_jobs.open_job(connection, site.name, group)
        if job and job.state != "requested":
            return job
        if job:  # we hold the lock, so the process that wrote the row is dead
            _give_up_unknown(connection, site, job)
        rest = export_jobs.cool_down(connection, site.name, site.client_id or "", group, runtime.clock.now())
        if rest:
            raise rest.error(site.name, group)
        with _session(runtime, site, session) as used:
            return _kicked_off(runtime, connection, used, group, since)


def _give_up_unknown(connection: psycopg.Connection, site: SiteSettings, job: ExportJob) -> None:
    _log.warning("Export %d of site %s was interrupted during its kick-off.", job.export_id, site.name)
    export_jobs.mark_failed(
        connection,
        job.export_id,
        "The process ended during the kick-off: an export may run at the site that cannot be found again.",
    )
    _rest(connection, site, job, "an interrupted kick-off may have started an export")
    connection.commit()


def new_job(
    runtime: Runtime,
    connection: psycopg.Connection,
    site_name: str,
    kind: Kind,
    *,
    group: str | None = None,
    resource_types: Sequence[str] = (),
    patients: Sequence[str] = (),
    since: datetime | None = None,
) -> ExportJob:
    """A committed `requested` row, under an id that the landing store does not know either; of a crawl, with its list.

    The store may be older than the warehouse: a new database begins to count at 1 again.
    """
    export_id = export_jobs.next_export_id(connection)
    while runtime.landing.exists(site_name, export_id):
        export_id = export_jobs.next_export_id(connection)
    job = export_jobs.create_job(
        connection,
        export_id=export_id,
        site=site_name,
        group=group,
        kind=kind,
        resource_types=resource_types,
        requested_at=runtime.clock.now(),
        since=since,
    )
    if patients:
        crawls.add_patients(connection, export_id, patients)
    connection.commit()
    return job


def _kicked_off(
    runtime: Runtime, connection: psycopg.Connection, session: EpicSession, group: str, since: datetime | None
) -> ExportJob:
    """A token first, and only then the row: a process that ends before the kick-off leaves nothing to wait for."""
    site = session.site

    def requested() -> ExportJob:
        return new_job(
            runtime, connection, site.name, "bulk", group=group, resource_types=site.resource_types, since=since
        )

    try:
        bulk_export.ask_for_token(session)
    except RequestBudgetSpent as error:
        export_jobs.mark_skipped(connection, requested().export_id, error.message)
        connection.commit()
        raise
    except EpicOmopError as error:
        export_jobs.mark_failed(connection, requested().export_id, error.message)
        connection.commit()
        raise
    return _kick_off(runtime, connection, session, requested())


def _kick_off(runtime: Runtime, connection: psycopg.Connection, session: EpicSession, job: ExportJob) -> ExportJob:
    site, group = session.site, job.group_id or ""
    try:
        started = bulk_export.kick_off(session, group, site.resource_types, job.since)
    except CooldownActive as refusal:
        next_try = _end_of_window(connection, site, group, refusal)
        export_jobs.mark_skipped(connection, job.export_id, refusal.message)
        rest = CoolDown(next_try, "Epic says that this group was requested too recently")
        export_jobs.put_cool_down(connection, site.name, site.client_id or "", group, rest)
        connection.commit()
        raise rest.error(site.name, group) from refusal
    except (KickOffUnknown, AcceptedWithoutAddress) as error:
        export_jobs.mark_failed(connection, job.export_id, error.message)
        _rest(connection, site, job, "a kick-off without a clear answer may have started an export")
        connection.commit()
        raise
    except RequestBudgetSpent as error:
        export_jobs.mark_skipped(connection, job.export_id, error.message)
        connection.commit()
        raise
    except EpicOmopError as error:  # the server started nothing
        export_jobs.mark_failed(connection, job.export_id, error.message)
        connection.commit()
        raise
    # The server's answer to the kick-off is the moment to ask again where no floor holds (the simulated Epic).
    wait = 0.0 if site.test_mode else site.poll_floor_seconds
    first_poll = runtime.clock.now() + timedelta(seconds=wait)
    job = export_jobs.save_status_url(connection, job.export_id, started.status_url, first_poll)
    export_jobs.clear_cool_down(connection, site.name, site.client_id or "", group)
    connection.commit()
    _log.info("Export %d of group %s of site %s was started.", job.export_id, group, site.name)
    return job


def _end_of_window(connection: psycopg.Connection, site: SiteSettings, group: str, refusal: CooldownActive) -> datetime:
    """When Epic will accept the group again: by our own last kick-off if that explains the refusal, else a window
    from now, because another client program started the export."""
    latest = refusal.next_try
    assert latest is not None, "a refused kick-off names its next try"
    now = latest - timedelta(hours=site.kickoff_window_hours)
    last = export_jobs.last_started(connection, site.name, group)
    if last is None:
        return latest
    end = last + timedelta(hours=site.kickoff_window_hours) + _WINDOW_MARGIN
    return min(end, latest) if end > now else latest


def _rest(connection: psycopg.Connection, site: SiteSettings, job: ExportJob, reason: str) -> None:
    """No kick-off of this group until the window of this job's kick-off has passed."""
    end = job.requested_at + timedelta(hours=site.kickoff_window_hours) + _WINDOW_MARGIN
    group = job.group_id or ""
    export_jobs.put_cool_down(connection, site.name, site.client_id or "", group, CoolDown(end, f"{reason}."))


def poll_once(
    runtime: Runtime, job: ExportJob, *, session: EpicSession | None = None, chance: random.Random | None = None
) -> ExportJob:
    """Ask for the status once, in 20 seconds at most; returns the job as saved.

    running: ask again at `next_poll_at` (`error` says if the question failed for now). complete: call `download`.
    Any other state is returned as it is. Raises ExportGone (saved as `gone`), PermanentError when the export has
    failed (saved as `failed`) or cannot be asked for until somebody changes something (stays `running`).
    """
    if job.state != "running" or job.status_url is None:
        return job
    site = runtime.settings.site(job.site)
    dice = chance or random.SystemRandom()
    with runtime.connect() as connection, _session(runtime, site, session) as used:
        try:
            return _polled(runtime, connection, used, job, dice)
        except SiteBusy:  # another process asked at the same time, and was told more
            connection.rollback()
            return export_jobs.get_job(connection, job.export_id)


def _polled(
    runtime: Runtime, connection: psycopg.Connection, session: EpicSession, job: ExportJob, dice: random.Random
) -> ExportJob:
    site = session.site
    try:
        status = _status(connection, session, job)
    except (RemoteUnavailable, RequestBudgetSpent) as error:
        now = runtime.clock.now()
        _give_up_an_old_job(connection, job, error, now)
        _log.warning("Export %d of site %s: %s", job.export_id, site.name, error.message)
        asked = (error.next_try - now).total_seconds() if error.next_try else None
        next_poll = _next_poll(site, now, asked, dice)
        return export_jobs.save_poll(connection, job.export_id, next_poll_at=next_poll, error=error.message)
    if isinstance(status, Manifest):
        _log.info("Export %d of site %s is complete: %d files.", job.export_id, site.name, len(status.output))
        return export_jobs.save_manifest(connection, job.export_id, status.to_json(), status.transaction_time)
    next_poll = _next_poll(site, runtime.clock.now(), status.retry_after_seconds, dice)
    return export_jobs.save_poll(connection, job.export_id, next_poll_at=next_poll, progress=status.progress)


def _status(connection: psycopg.Connection, session: EpicSession, job: ExportJob) -> StillRunning | Manifest:
    short = session.within(_STATUS_CALL_SECONDS)
    try:
        short.tokens.current(short.transport)  # apart: what goes wrong here says nothing about the export
    except PermanentError as error:
        _save_error(connection, job, error)
        raise
    try:
        return bulk_export.poll(short, job.status_url or "", session_for_pages=session)
    except PermanentError as error:
        _end_by(connection, session.site, job, error)


def _end_by(connection: psycopg.Connection, site: SiteSettings, job: ExportJob, error: PermanentError) -> NoReturn:
    """Save what a permanent error means for the job, and raise it."""
    waits_for_somebody = isinstance(error, AuthenticationRefused | UnsafeRemote) or (
        isinstance(error, RemoteRefused) and error.status in (401, 403)
    )
    if waits_for_somebody:
        _save_error(connection, job, error)
        raise error
    if isinstance(error, ExportGone):
        export_jobs.mark_gone(connection, job.export_id, error.message)
    else:
        export_jobs.mark_failed(connection, job.export_id, error.message)
    _rest(connection, site, job, "its last export did not end well, and Epic allows one in this time")
    connection.commit()
    raise error


def _give_up_an_old_job(
    connection: psycopg.Connection, job: ExportJob, error: RemoteUnavailable | RequestBudgetSpent, now: datetime
) -> None:
    if now - job.requested_at > _GIVE_UP_AFTER:
        export_jobs.mark_failed(connection, job.export_id, error.message)
        connection.commit()
        raise error


def _next_poll(site: SiteSettings, now: datetime, asked_seconds: float | None, dice: random.Random) -> datetime:
    """When to ask again: after Retry-After between the site's floor and ceiling, with jitter.

    In test mode what the server asks for counts even below the floor.
    """
    floor = 0.0 if site.test_mode and asked_seconds is not None else site.poll_floor_seconds
    wait = min(max(asked_seconds or 0.0, floor), site.poll_ceiling_seconds)
    jitter = dice.uniform(0.0, _MOST_JITTER) * wait
    jittered = wait + jitter if wait + jitter <= site.poll_ceiling_seconds else max(floor, wait - jitter)
    return now + timedelta(seconds=jittered)


def download(
    runtime: Runtime, job: ExportJob, progress: ProgressCallback | None = None, *, session: EpicSession | None = None
) -> LandedExport:
    """Fetch the files of a complete export that are not there yet, verify, land, delete the job on the server.

    For a landed export, returns what is in the store. Raises ExportNotReady for one that runs, SiteBusy while
    another process downloads it, ExportGone when a file is lost (saved as `failed`), and what `bulk_export.download`
    and the landing store raise; then calling it again goes on where it stopped.
    """
    site = runtime.settings.site(job.site)
    with runtime.connect() as connection, export_jobs.site_lock(connection, site.name, f"export {job.export_id}"):
        job = export_jobs.get_job(connection, job.export_id)
        connection.commit()
        if job.state in ("requested", "running"):
            message = f"Export {job.export_id} of site {job.site} still runs at the site."
            raise ExportNotReady(message, "Ask for its status again later.", next_try=job.next_poll_at)
        with _session(runtime, site, session) as used:
            landed = _landed(runtime, connection, used, job, progress)
            _delete_on_server(runtime, connection, used, job)
        return landed


def _landed(
    runtime: Runtime,
    connection: psycopg.Connection,
    session: EpicSession,
    job: ExportJob,
    progress: ProgressCallback | None,
) -> LandedExport:
    if job.state == "complete":
        try:
            landed = _fetched(runtime, session, job, progress)
        except ExportGone as error:
            _end_by_lost_file(connection, session.site, job, error)
        except EpicOmopError as error:
            _save_error(connection, job, error)
            raise
        export_jobs.save_landed(connection, landed, runtime.clock.now())
        connection.commit()
        _tell_notes(connection, job)
        connection.commit()
        return landed
    try:
        return runtime.landing.open(job.site, job.export_id)
    except LandingError as error:
        if job.state == "landed":  # otherwise this group could never be exported again
            export_jobs.mark_failed(connection, job.export_id, error.message)
            connection.commit()
        raise


def _end_by_lost_file(
    connection: psycopg.Connection, site: SiteSettings, job: ExportJob, error: ExportGone
) -> NoReturn:
    """A file is lost, also by the manifest read again: the export cannot become whole. The server's job stays."""
    if export_jobs.get_job(connection, job.export_id).is_open:
        export_jobs.mark_failed(connection, job.export_id, error.message)
        _rest(connection, site, job, "files of its last export were lost, and Epic allows one in this time")
        connection.commit()
    raise error


def _fetched(runtime: Runtime, session: EpicSession, job: ExportJob, progress: ProgressCallback | None) -> LandedExport:
    if runtime.landing.is_finished(job.site, job.export_id):  # the process ended before the warehouse knew
        return runtime.landing.open(job.site, job.export_id)
    draft = runtime.landing.begin(job.site, job.export_id)

    def save_manifest(manifest: Manifest) -> None:  # called from a thread of the download
        with runtime.connect() as connection:
            export_jobs.save_manifest(connection, job.export_id, manifest.to_json(), manifest.transaction_time)

    return ExportDownload(session, job, draft, save_manifest=save_manifest, progress=progress).run()


def _delete_on_server(runtime: Runtime, connection: psycopg.Connection, session: EpicSession, job: ExportJob) -> None:
    """Rule 3: after a clean download. Best effort: a job that stays is deleted by the server in 14 days."""
    if job.deleted_at is not None or job.status_url is None:
        return
    try:
        bulk_export.delete_job(session, job.status_url)
    except EpicOmopError as error:
        _log.warning("Export %d is landed, but its job stays on the server: %s", job.export_id, error.message)
        export_jobs.save_error(connection, job.export_id, f"Landed; not deleted on the server: {error.message}")
    else:
        export_jobs.mark_deleted(connection, job.export_id, runtime.clock.now())
    connection.commit()


def types_not_received(job: ExportJob, landed: LandedExport) -> tuple[str, ...]:
    """The types that were asked for and of which no file came, in the order asked."""
    received = {file.resource_type for file in landed.files}
    return tuple(name for name in job.resource_types if name not in received)


def _tell_notes(connection: psycopg.Connection, job: ExportJob) -> None:
    """Types that did not come, and what the site says: from the warehouse, where everybody finds it."""
    for sentence in export_notes(connection, [job.export_id]).told():
        _log.warning("Export %d of site %s: %s", job.export_id, job.site, sentence)


def ingest_folder(
    runtime: Runtime,
    site_name: str,
    folder: Path,
    progress: ProgressCallback | None = None,
    *,
    group: str | None = None,
    complete: bool = False,
) -> LandedExport:
    """Land a folder of NDJSON files under a site's name, as an export of kind `folder` taken now.

    `group`: it is an export of that group; `complete`: it holds all that the group has of the types of its files (and
    of the site's `empty_when_missing`), so that what it does not hold has vanished. Without a group it is never
    complete.

    What an interrupted ingest of this site left is ended first. Raises UsageError for a folder without NDJSON,
    ConfigurationError for an impossible site name or one that is missing from sites.yaml, SiteBusy while another
    process ingests, LandingError.
    """
    site = runtime.settings.site_or_folder(site_name)
    ndjson_files(folder)  # a wrong folder is told before anything is written
    with runtime.connect() as connection, export_jobs.site_lock(connection, site.name, "the ingest of a folder"):
        refuse_missing_site(connection, runtime.settings, site.name)
        for left in export_jobs.unfinished_folder_jobs(connection, site.name):
            _end_folder(runtime, connection, left, "The process ended while the folder was copied.")
        job = new_job(runtime, connection, site.name, "folder", group=group)
        try:
            landed = runtime.landing.land_folder(site.name, job.export_id, folder, job.requested_at, progress)
        except EpicOmopError as error:
            _end_folder(runtime, connection, job, error.message)
            raise
        if complete and group:
            types = {*(file.resource_type for file in landed.files), *site.empty_when_missing}
            export_jobs.save_asked_types(connection, job.export_id, sorted(types))
        export_jobs.save_landed(connection, landed, runtime.clock.now())
        connection.commit()
        return landed


def _end_folder(runtime: Runtime, connection: psycopg.Connection, job: ExportJob, reason: str) -> None:
    runtime.landing.discard(job.site, job.export_id)
    export_jobs.mark_failed(connection, job.export_id, reason)
    connection.commit()


def export_site(runtime: Runtime, site: SiteSettings, progress: EventCallback | None = None) -> list[LandedExport]:
    """Export all groups of a site and wait until they are landed.

    A group that fails does not hold up the others. Raises the first failure after all groups have come to an end;
    the landed ones stay in the state `landed`.
    """
    result = export_groups(runtime, site, site.groups, progress)
    for error in result.failures.values():
        raise error
    return list(result.landed)


def export_groups(
    runtime: Runtime,
    site: SiteSettings,
    groups: Sequence[str],
    progress: EventCallback | None = None,
    *,
    since: datetime | None = None,
) -> SiteExport:
    """Export the groups of a site side by side and wait. Raises ConfigurationError; failures of groups are returned.

    `since`: exports that are started now hold what changed from then on, and nothing vanishes by them.
    """
    if since is not None and not site.supports_since:
        raise ConfigurationError(
            f"Site {site.name} is not said to know `_since`, so it may send everything, or refuse.",
            "Ask the site, then set supports_since: true in sites.yaml; or leave --since out.",
        )
    with site_session(runtime, site) as session:
        return _SiteRun(runtime, site, session, progress or (lambda _: None), since).run(groups)


class _SiteRun:
    """The waiting of a command: polls each open export when it is due, downloads it when it is complete."""

    def __init__(
        self,
        runtime: Runtime,
        site: SiteSettings,
        session: EpicSession,
        tell: EventCallback,
        since: datetime | None = None,
    ) -> None:
        self._since = since
        self._runtime = runtime
        self._site = site
        self._session = session
        self._tell = tell
        self._failures: dict[str, EpicOmopError] = {}
        self._landed: list[LandedExport] = []
        self._missing: dict[int, tuple[str, ...]] = {}
        self._notes: dict[int, Sequence[str]] = {}
        self._failed_polls: dict[int, int] = {}

    def run(self, groups: Sequence[str]) -> SiteExport:
        waiting = [job for group in groups if (job := self._opened(group))]
        while waiting:
            job = min(waiting, key=lambda job: job.next_poll_at or job.requested_at)
            waiting.remove(job)
            later = self._step(job)
            if later:
                waiting.append(later)
        return SiteExport(tuple(self._landed), self._failures, self._missing, self._notes)

    def _opened(self, group: str) -> ExportJob | None:
        try:
            job = open_or_adopt(self._runtime, self._site, group, since=self._since, session=self._session)
        except EpicOmopError as error:
            self._fail(group, error)
            return None
        self._tell(ExportEvent(group, job.state, job.progress or ""))
        return job

    def _step(self, job: ExportJob) -> ExportJob | None:
        """One poll when it is due, or the download; None when the group has come to its end."""
        group = job.group_id or ""
        try:
            if job.state == "running":
                self._wait_until(job.next_poll_at)
                return self._polled(job)
            landed = download(self._runtime, job, lambda step: self._told(group, step), session=self._session)
        except EpicOmopError as error:
            self._fail(group, error)
            return None
        self._landed.append(landed)
        self._missing[job.export_id] = types_not_received(job, landed)
        with self._runtime.connect() as connection:
            self._notes[job.export_id] = export_notes(connection, [job.export_id]).told()
        self._tell(ExportEvent(group, "landed", f"{len(landed.files)} files, {landed.lines} resources"))
        return None

    def _polled(self, job: ExportJob) -> ExportJob:
        job = poll_once(self._runtime, job, session=self._session)
        failures = self._failed_polls.get(job.export_id, 0) + 1 if job.error else 0
        self._failed_polls[job.export_id] = failures
        if failures >= _FAILED_POLLS:
            message = f"Export {job.export_id} of site {job.site}: {failures} status calls in a row failed."
            advice = "The export stays open: run the same command again later and it goes on."
            raise RemoteUnavailable(message, advice, next_try=job.next_poll_at)
        self._tell(ExportEvent(job.group_id or "", job.state, job.error or job.progress or ""))
        return job

    def _wait_until(self, instant: datetime | None) -> None:
        wait = (instant - self._runtime.clock.now()).total_seconds() if instant else 0.0
        if wait > 0:
            self._runtime.clock.sleep(wait)

    def _told(self, group: str, step: LandingProgress) -> None:
        self._tell(ExportEvent(group, "complete", landing=step))

    def _fail(self, group: str, error: EpicOmopError) -> None:
        self._failures[group] = error
        self._tell(ExportEvent(group, "failed", error.message))


def _save_error(connection: psycopg.Connection, job: ExportJob, error: EpicOmopError) -> None:
    export_jobs.save_error(connection, job.export_id, error.message)
    connection.commit()


@contextmanager
def _session(runtime: Runtime, site: SiteSettings, given: EpicSession | None) -> Iterator[EpicSession]:
    """The caller's session, or one for this step alone."""
    if given is not None:
        yield given
        return
    with site_session(runtime, site) as session:
        yield session
