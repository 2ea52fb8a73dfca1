"""One question for the status of an export that runs at the site, and what its answer means for the job."""

from __future__ import annotations

import logging
import random
from datetime import datetime, timedelta
from typing import NoReturn

import psycopg

from omop_schema.exports import ExportState
from pipeline.core.errors import (
    AddressNotListed,
    AuthenticationRefused,
    ExportGone,
    PermanentError,
    RemoteRefused,
    RemoteUnavailable,
    RequestBudgetSpent,
    SiteBusy,
    UnreadableStatus,
)
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import names_export
from pipeline.extract.bulk import protocol
from pipeline.extract.bulk.protocol import Manifest, StillRunning
from pipeline.extract.bulk.states import keep_cool_down, save_error, session_of
from pipeline.extract.bulk.times import KeepFutureTime, export_time
from pipeline.extract.smart.session import EpicSession
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = ["poll_once"]

_log = logging.getLogger(__name__)

#: A status call made by a sensor, the token included.
_STATUS_CALL_SECONDS = 20.0

#: Results are kept for 14 days (rule 7); an export whose status cannot be had for longer is given up.
_GIVE_UP_AFTER = timedelta(days=15)

_MOST_JITTER = 0.1


def poll_once(
    runtime: Runtime,
    job: ExportJob,
    *,
    session: EpicSession | None = None,
    chance: random.Random | None = None,
    keep_future_time: KeepFutureTime | None = None,
) -> ExportJob:
    """Ask for the status once, in 20 seconds at most; returns the job as saved.

    running: ask again at `next_poll_at` (`error` says if the question failed for now). complete: call `download`.
    Any other state is returned as it is. Raises ExportGone (saved as `gone`), PermanentError when the export has
    failed or can never be asked for (saved as `failed`), or cannot be asked for until somebody changes something
    (stays `running`). `keep_future_time` asks a person about a transactionTime that is ahead of our clock.
    """
    if job.state != ExportState.RUNNING or job.status_url is None:
        return job
    site = runtime.settings.site(job.site)
    dice = chance or random.SystemRandom()
    with runtime.connect() as connection, session_of(runtime, site, session) as used:
        try:
            return _poll(runtime, connection, used, job, dice, keep_future_time)
        except SiteBusy:  # another process asked at the same time, and has a newer answer
            connection.rollback()
            return export_jobs.get_job(connection, job.export_id)


def _poll(
    runtime: Runtime,
    connection: psycopg.Connection,
    session: EpicSession,
    job: ExportJob,
    dice: random.Random,
    keep_future_time: KeepFutureTime | None,
) -> ExportJob:
    site = session.site
    try:
        status = _status(connection, session, job)
    except (RemoteUnavailable, RequestBudgetSpent) as error:
        return _note_failure(runtime, connection, site, job, error, dice)
    if isinstance(status, StillRunning):
        next_poll = _next_poll(site, runtime.clock.now(), status.retry_after_seconds, dice)
        return export_jobs.save_poll(connection, job.export_id, next_poll_at=next_poll, progress=status.progress)
    now = runtime.clock.now()
    ordered = export_time(connection, job, status.transaction_time, now, keep_future_time)
    for note in ordered.notes:
        _log.warning("Export %d of site %s: %s", job.export_id, site.name, note)
    _log.info("Export %d of site %s is complete: %d files.", job.export_id, site.name, len(status.output))
    notes = (*job.notes, *ordered.notes)
    return export_jobs.save_manifest(
        connection, job.export_id, status.to_json(), ordered.instant, complete_since=now, notes=notes
    )


def _note_failure(
    runtime: Runtime,
    connection: psycopg.Connection,
    site: SiteSettings,
    job: ExportJob,
    error: RemoteUnavailable | RequestBudgetSpent,
    dice: random.Random,
) -> ExportJob:
    """The question failed for now; given up only when it has failed for as long as results are kept, or has been
    answered with what is not a manifest for a whole window."""
    now = runtime.clock.now()
    since = job.failing_since or now
    window = timedelta(hours=site.kickoff_window_hours)
    unreadable = isinstance(error, UnreadableStatus) and now - since >= window
    if unreadable or now - job.requested_at > _GIVE_UP_AFTER:
        export_jobs.mark_failed(connection, job.export_id, error.message)
        connection.commit()
        raise error
    _log.warning("Export %d of site %s: %s", job.export_id, site.name, error.message)
    asked = (error.next_try - now).total_seconds() if error.next_try else None
    next_poll = _next_poll(site, now, asked, dice)
    return export_jobs.save_poll(
        connection, job.export_id, next_poll_at=next_poll, error=error.message, failing_since=since
    )


@names_export
def _status(connection: psycopg.Connection, session: EpicSession, job: ExportJob) -> StillRunning | Manifest:
    short = session.within(_STATUS_CALL_SECONDS)
    try:
        short.tokens.current(short.transport)  # apart: what goes wrong here says nothing about the export
    except PermanentError as error:
        save_error(connection, job, error)
        raise
    try:
        return protocol.poll(short, job.status_url or "", session_for_pages=session)
    except PermanentError as error:
        _end_by(connection, session.site, job, error)


def _end_by(connection: psycopg.Connection, site: SiteSettings, job: ExportJob, error: PermanentError) -> NoReturn:
    """Save what a permanent error means for the job, and raise it."""
    waits_for_somebody = isinstance(error, AuthenticationRefused | AddressNotListed) or (
        isinstance(error, RemoteRefused) and error.status in (401, 403)
    )
    if waits_for_somebody:
        save_error(connection, job, error)
        raise error
    if isinstance(error, ExportGone):
        export_jobs.mark_gone(connection, job.export_id, error.message)
    else:
        export_jobs.mark_failed(connection, job.export_id, error.message)
    keep_cool_down(connection, site, job, "its last export did not end well, and Epic allows one in this time")
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
