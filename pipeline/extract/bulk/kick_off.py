"""The kick-off of a group's export, sent once; or the open export is adopted instead of starting a second one."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import NoReturn

import psycopg

from pipeline.core.errors import (
    AcceptedWithoutAddress,
    CooldownActive,
    EpicOmopError,
    KickOffUnknown,
    RemoteUnavailable,
    RequestBudgetSpent,
    TransientError,
)
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import names_export
from pipeline.extract.asked_types import of_known_types
from pipeline.extract.bulk import protocol
from pipeline.extract.bulk.states import WINDOW_MARGIN, new_job, rest, session_of
from pipeline.extract.smart.session import EpicSession
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import CoolDown, ExportJob
from pipeline.warehouse.next_kick_offs import forget_next, plan_next
from pipeline.warehouse.runtime import Runtime

__all__ = ["may_have_started", "open_or_adopt"]

_log = logging.getLogger(__name__)

#: A refusal so soon after the end of the window is one of the clocks; the next try is so much later.
_CLOCKS_DIFFER = timedelta(hours=1)
_A_LITTLE_LATER = timedelta(minutes=10)


def open_or_adopt(
    runtime: Runtime,
    site: SiteSettings,
    group: str,
    *,
    since: datetime | None = None,
    session: EpicSession | None = None,
) -> ExportJob:
    """The group's open export, or a new one that is kicked off now; `since`: of what changed from then on.

    Returns a job in the state running, complete or landed. Raises CooldownActive inside the group's window,
    SiteBusy while another process kicks off, and what `protocol.kick_off` raises. Where that passes by itself, the
    next try is kept in `etl.next_kick_off`, is the error's `next_try`, and is made by Dagster's sensor.
    """
    with (
        runtime.connect() as connection,
        export_jobs.site_lock(connection, site.name, export_jobs.SiteWork.GROUP, group),
    ):
        job = export_jobs.open_job(connection, site.name, group)
        if job and job.state != "requested":
            return job
        if job:  # we hold the lock, so the process that wrote the row is dead
            _give_up_unknown(connection, site, job)
        now = runtime.clock.now()
        resting = export_jobs.cool_down(connection, site.name, site.client_id or "", group, now)
        if resting:
            plan_next(connection, site, group, now, resting.reason, not_before=resting.next_try)
            connection.commit()
            raise resting.error(site.name, group)
        with session_of(runtime, site, session) as used:
            return _kicked_off(runtime, connection, used, group, since, names_types=site.resource_types is not None)


def _give_up_unknown(connection: psycopg.Connection, site: SiteSettings, job: ExportJob) -> None:
    _log.warning("Export %d of site %s was interrupted during its kick-off.", job.export_id, site.name)
    export_jobs.mark_failed(
        connection,
        job.export_id,
        "The process ended during the kick-off: an export may run at the site that cannot be found again.",
    )
    end = rest(connection, site, job, "an interrupted kick-off may have started an export")
    plan_next(connection, site, job.group_id or "", end, "a kick-off was interrupted.", not_before=end)
    connection.commit()


def _kicked_off(
    runtime: Runtime,
    connection: psycopg.Connection,
    session: EpicSession,
    group: str,
    since: datetime | None,
    *,
    names_types: bool,
) -> ExportJob:
    """A token first, and only then the row: a process that ends before the kick-off leaves nothing to wait for.

    `names_types`: whether the site says itself what to ask for; else it is asked for what it has.
    """

    notes: list[str] = []

    def requested(site: SiteSettings) -> ExportJob:
        types = site.asked_types
        return new_job(
            runtime, connection, site.name, "bulk", group=group, resource_types=types, since=since, notes=notes
        )

    try:
        if not names_types:
            session, notes = of_known_types(session)
        protocol.ask_for_token(session)
    except EpicOmopError as error:
        _refused(runtime, connection, session.site, requested(session.site), error)
    return _kick_off(runtime, connection, session, requested(session.site))


@names_export
def _kick_off(runtime: Runtime, connection: psycopg.Connection, session: EpicSession, job: ExportJob) -> ExportJob:
    site, group = session.site, job.group_id or ""
    try:
        started = protocol.kick_off(session, group, site.asked_types, job.since)
    except EpicOmopError as error:
        _refused(runtime, connection, site, job, error)
    # The server's answer to the kick-off is the moment to ask again where no floor holds (the simulated Epic).
    wait = 0.0 if site.test_mode else site.poll_floor_seconds
    first_poll = runtime.clock.now() + timedelta(seconds=wait)
    job = export_jobs.save_status_url(connection, job.export_id, started.status_url, first_poll)
    export_jobs.clear_cool_down(connection, site.name, site.client_id or "", group)
    forget_next(connection, site, group)
    connection.commit()
    _log.info("Export %d of group %s of site %s was started.", job.export_id, group, site.name)
    return job


def _refused(
    runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, job: ExportJob, error: EpicOmopError
) -> NoReturn:
    """Save what a kick-off that failed means for the job and for the next try, and raise it."""
    skipped = isinstance(error, CooldownActive | RequestBudgetSpent)
    mark = export_jobs.mark_skipped if skipped else export_jobs.mark_failed
    mark(connection, job.export_id, error.message)
    group, now = job.group_id or "", runtime.clock.now()
    told: EpicOmopError = error
    if isinstance(error, CooldownActive):
        told = _too_recently(connection, site, group, now)
    elif isinstance(error, AcceptedWithoutAddress) or may_have_started(error):
        end = rest(connection, site, job, "a kick-off without a clear answer may have started an export")
        if isinstance(error, TransientError):
            error.next_try = plan_next(connection, site, group, now, error.message, not_before=end)
    elif isinstance(error, TransientError):
        told = _for_now(connection, site, group, now, error)
    else:  # until somebody changes something
        forget_next(connection, site, group)
    connection.commit()
    raise told from (None if told is error else error)


#: A server that answers so has seen the request and made nothing of it; a gateway (504) or a time-out (408) knows less.
_NOT_STARTED = frozenset({500, 502})


def may_have_started(error: EpicOmopError) -> bool:
    """Whether a kick-off that failed so may have been the beginning of an export."""
    return isinstance(error, KickOffUnknown) and error.status not in _NOT_STARTED


def _for_now(
    connection: psycopg.Connection, site: SiteSettings, group: str, now: datetime, error: TransientError
) -> TransientError:
    """Refused for a reason that passes: the next try is planned. A wait that the server asks for holds for everybody."""
    asked = error.next_try if error.next_try and error.next_try > now else None
    next_try = plan_next(connection, site, group, now, error.message, asked=asked)
    if asked and next_try and isinstance(error, RemoteUnavailable):
        resting = CoolDown(next_try, "the site asks to wait so long.")
        export_jobs.put_cool_down(connection, site.name, site.client_id or "", group, resting)
    error.next_try = next_try
    if next_try:
        error.advice = f"The next try is due at {next_try:%Y-%m-%d %H:%M} UTC: {_WHO_TRIES}"
    else:
        error.advice = "It was refused for a whole window: the next schedule, or a run by hand, asks again."
    return error


_WHO_TRIES = "Dagster's sensor makes it, or run the same command then."


def _too_recently(connection: psycopg.Connection, site: SiteSettings, group: str, now: datetime) -> CooldownActive:
    next_try = _end_of_window(connection, site, group, now)
    resting = CoolDown(next_try, "Epic says that this group was requested too recently.")
    export_jobs.put_cool_down(connection, site.name, site.client_id or "", group, resting)
    plan_next(connection, site, group, now, resting.reason, not_before=next_try)
    return resting.error(site.name, group)


def _end_of_window(connection: psycopg.Connection, site: SiteSettings, group: str, now: datetime) -> datetime:
    """When Epic will accept the group again: by our own last kick-off if that explains the refusal, else a window
    from now, because another client program started the export."""
    window = timedelta(hours=site.kickoff_window_hours)
    last = export_jobs.last_started(connection, site.name, group)
    end = last + window + WINDOW_MARGIN if last else now - window
    if end > now:
        return min(end, now + window)
    # Its clock, or its window, is a little behind ours.
    return now + _A_LITTLE_LATER if now - end < _CLOCKS_DIFFER else now + window
