"""The kick-off of a group's export, sent once; or the open export is adopted instead of starting a second one."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

import psycopg

from omop_schema.exports import ExportKind, ExportState
from pipeline.core.errors import EpicOmopError
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import names_export
from pipeline.extract.asked_types import of_known_types
from pipeline.extract.bulk import protocol
from pipeline.extract.bulk.refusals import Attempt, raise_refusal
from pipeline.extract.bulk.states import keep_cool_down, new_job, session_of
from pipeline.extract.smart.session import EpicSession
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.next_kick_offs import forget_next, plan_next
from pipeline.warehouse.runtime import Runtime

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

    Returns a job in the state running, complete or landed. Raises CooldownActive inside the group's window,
    SiteBusy while another process kicks off, and what `protocol.kick_off` raises. Where that passes by itself, the
    next try is kept in `etl.next_kick_off`, is the error's `next_try`, and is made by Dagster's sensor.
    """
    with (
        runtime.connect() as connection,
        export_jobs.site_lock(connection, site.name, export_jobs.SiteWork.GROUP, group),
    ):
        job = export_jobs.open_job(connection, site.name, group)
        if job and job.state != ExportState.REQUESTED:
            return job
        if job:  # we hold the lock, so the process that wrote the row is dead
            _give_up_unknown(connection, site, job)
        now = runtime.clock.now()
        cool_down = export_jobs.cool_down(connection, site.name, site.client_id or "", group, now)
        if cool_down:
            plan_next(connection, site, group, now, cool_down.reason, not_before=cool_down.next_try)
            connection.commit()
            raise cool_down.error(site.name, group)
        with session_of(runtime, site, session) as used:
            names_types = site.resource_types is not None
            return _get_token_and_kick_off(runtime, connection, used, group, since, names_types=names_types)


def _give_up_unknown(connection: psycopg.Connection, site: SiteSettings, job: ExportJob) -> None:
    _log.warning("Export %d of site %s was interrupted during its kick-off.", job.export_id, site.name)
    export_jobs.mark_failed(
        connection,
        job.export_id,
        "The process ended during the kick-off: an export may run at the site that cannot be found again.",
    )
    end = keep_cool_down(connection, site, job, "an interrupted kick-off may have started an export")
    plan_next(connection, site, job.group_id or "", end, "a kick-off was interrupted.", not_before=end)
    connection.commit()


def _get_token_and_kick_off(
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

    def new_bulk_job(site: SiteSettings) -> ExportJob:
        return new_job(
            runtime,
            connection,
            site.name,
            ExportKind.BULK,
            group=group,
            resource_types=site.asked_types,
            since=since,
            notes=notes,
        )

    try:
        if not names_types:
            session, notes = of_known_types(session)
        protocol.ask_for_token(session)
    except EpicOmopError as error:
        raise_refusal(Attempt(connection, session.site, new_bulk_job(session.site), runtime.clock.now()), error)
    return _kick_off(runtime, connection, session, new_bulk_job(session.site))


@names_export
def _kick_off(runtime: Runtime, connection: psycopg.Connection, session: EpicSession, job: ExportJob) -> ExportJob:
    site, group = session.site, job.group_id or ""
    try:
        started = protocol.kick_off(session, group, site.asked_types, job.since)
    except EpicOmopError as error:
        raise_refusal(Attempt(connection, site, job, runtime.clock.now()), error)
    # The server's answer to the kick-off is the moment to ask again where no floor holds (the simulated Epic).
    wait = 0.0 if site.test_mode else site.poll_floor_seconds
    first_poll = runtime.clock.now() + timedelta(seconds=wait)
    job = export_jobs.save_status_url(connection, job.export_id, started.status_url, first_poll)
    export_jobs.clear_cool_down(connection, site.name, site.client_id or "", group)
    forget_next(connection, site, group)
    connection.commit()
    _log.info("Export %d of group %s of site %s was started.", job.export_id, group, site.name)
    return job
