"""The kick-off of a group's export, sent once; or the open export is adopted instead of starting a second one."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

import psycopg

from pipeline.epic import bulk_export
from pipeline.epic.session import EpicSession
from pipeline.errors import (
    AcceptedWithoutAddress,
    CooldownActive,
    EpicOmopError,
    KickOffUnknown,
    RequestBudgetSpent,
)
from pipeline.exports.states import WINDOW_MARGIN, new_job, rest, session_of
from pipeline.runtime import Runtime
from pipeline.settings import SiteSettings
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import CoolDown, ExportJob

__all__ = ["open_or_adopt"]

_log = logging.getLogger(__name__)


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
        with session_of(runtime, site, session) as used:
            return _kicked_off(runtime, connection, used, group, since)


def _give_up_unknown(connection: psycopg.Connection, site: SiteSettings, job: ExportJob) -> None:
    _log.warning("Export %d of site %s was interrupted during its kick-off.", job.export_id, site.name)
    export_jobs.mark_failed(
        connection,
        job.export_id,
        "The process ended during the kick-off: an export may run at the site that cannot be found again.",
    )
    rest(connection, site, job, "an interrupted kick-off may have started an export")
    connection.commit()


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
        rest(connection, site, job, "a kick-off without a clear answer may have started an export")
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
    end = last + timedelta(hours=site.kickoff_window_hours) + WINDOW_MARGIN
    return min(end, latest) if end > now else latest
