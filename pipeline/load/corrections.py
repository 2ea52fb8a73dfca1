"""What a person corrects by hand: an open export is given up, the time of an export is set, an export is forgotten.

Each takes the locks that its subject's own work takes, and can be called again after a crash.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import psycopg
from psycopg.types.json import Jsonb

from omop_schema.exports import ExportKind, ExportState
from pipeline.core.errors import EpicOmopError, LandingError, UsageError
from pipeline.core.settings import SiteSettings
from pipeline.extract.bulk import protocol
from pipeline.extract.bulk.states import keep_cool_down, session_of
from pipeline.extract.bulk.times import EARLIEST, MOST_AHEAD
from pipeline.extract.smart.session import EpicSession
from pipeline.publication.known_cache import keeping_mark
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob, SiteWork, site_lock
from pipeline.warehouse.runtime import Runtime

__all__ = ["Abandoned", "Corrected", "abandon", "forget", "retime"]

_log = logging.getLogger(__name__)

#: The DELETE of an export that is given up; a server that is down does not hold up the command.
_DELETE_SECONDS = 30.0

#: By kind, what ends an export that is open.
_ADVICE_OF_OPEN = {
    ExportKind.BULK: "Give it up with `epic-omop export abandon`.",
    ExportKind.CRAWL: "Finish it with `epic-omop crawl SITE --resume`.",
    ExportKind.FOLDER: "It ends with the command that loads it; the next `epic-omop ingest --from` takes away what was killed.",
}

#: Earlier than any export: whatever comes is newer.
_BEFORE_ALL = datetime(1900, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Abandoned:
    """An export that was given up. `not_deleted`: why its job may stay on the server. `next_try`: when Epic allows the
    next kick-off of the group; None: now."""

    export_id: int
    not_deleted: str | None
    next_try: datetime | None


@dataclass(frozen=True)
class Corrected:
    """What was corrected, and which landed exports are to be loaded again, in this order, so that they count."""

    export_id: int
    former_time: datetime | None
    time: datetime | None
    load_again: Sequence[int]


def abandon(runtime: Runtime, site: SiteSettings, group: str, *, session: EpicSession | None = None) -> Abandoned:
    """Give up a group's open export, whatever its state, and delete its job on the server, as far as that answers.

    What was landed whole stays in landing and can still be loaded by number; parts are removed. The group is free as soon
    as Epic's window has passed. Raises UsageError when none is open, SiteBusy while another process works on it.
    """
    with runtime.connect() as connection, site_lock(connection, site.name, SiteWork.GROUP, group):
        job = export_jobs.open_job(connection, site.name, group)
        if job is None:
            raise UsageError(
                f"Group {group} of site {site.name} has no open export.", "`epic-omop status` lists what is open."
            )
        with ExitStack() as locks:
            locks.enter_context(site_lock(connection, site.name, SiteWork.EXPORT, job.export_id))
            if job.state == ExportState.LANDED:  # a load that has begun is not given up half way
                locks.enter_context(site_lock(connection, site.name, SiteWork.INGEST))
            not_deleted = _delete_on_server(runtime, site, job, session)
            export_jobs.mark_failed(connection, job.export_id, "It was given up by hand.")
            if not_deleted is None:
                export_jobs.mark_deleted(connection, job.export_id, runtime.clock.now())
            end = keep_cool_down(
                connection, site, job, "its last export was given up, and Epic allows one in this time"
            )
            connection.commit()
            runtime.landing.discard(site.name, job.export_id)
    return Abandoned(job.export_id, not_deleted, end if end > runtime.clock.now() else None)


def _delete_on_server(runtime: Runtime, site: SiteSettings, job: ExportJob, session: EpicSession | None) -> str | None:
    """None when the server has deleted the job, else why not."""
    if job.deleted_at is not None:
        return None
    if job.status_url is None:
        return "its address is not known"
    try:
        with session_of(runtime, site, session) as used:
            protocol.delete_job(used.within(_DELETE_SECONDS), job.status_url)
    except EpicOmopError as error:
        _log.warning("Export %d is given up, but its job stays on the server: %s", job.export_id, error.message)
        return error.message
    return None


def retime(runtime: Runtime, site: str, export_id: int, time: datetime | None = None) -> Corrected:
    """Set the time that orders an export (default: that of its kick-off, by our clock), in the warehouse and in landing.

    What came after it by the new order and counted as older is named in `load_again`. Raises UsageError for an export
    without a time or that does not count, or a time that no export can have; WarehouseError, SiteBusy, LandingError.
    """
    with runtime.connect() as connection, _export_locks(connection, site, export_id):
        job = _job_of(connection, site, export_id)
        if job.transaction_time is None:
            raise UsageError(
                f"Export {export_id} has no time yet: it is {job.state}.", _ADVICE_OF_OPEN.get(job.kind, "")
            )
        if not job.is_open and job.published_at is None:
            raise UsageError(
                f"Export {export_id} is {job.state}: it counts for nothing, so it has no place among the others.",
                f"If it is in landing, `epic-omop ingest --site {site} --export {export_id}` lets it count again.",
            )
        instant = time or job.requested_at
        if instant < EARLIEST:
            raise UsageError(f"{instant.date()} is before there was FHIR.", "Name the time at which it was exported.")
        if instant - runtime.clock.now() > MOST_AHEAD:
            raise UsageError(f"{instant:%Y-%m-%d %H:%M} UTC is in the future.", "Name a time that has passed.")
        ids = _with_replays(connection, job)
        for number in ids:
            _retime_landed(runtime, site, number, instant)
        former = f"before, it was {job.transaction_time:%Y-%m-%d %H:%M} UTC"
        note = f"Its time was set to {instant:%Y-%m-%d %H:%M} UTC by hand; {former}."
        connection.execute(
            "UPDATE export_job SET transaction_time = %s, notes = notes || %s WHERE export_id = ANY(%s)",
            [instant, Jsonb([note]), ids],
        )
        with keeping_mark(connection):
            connection.execute("UPDATE resource_state SET as_of = %s WHERE export_id = ANY(%s)", [instant, ids])
        _derive_all_again(runtime, connection, site)
        passed = _find_published(connection, site, instant, job.transaction_time)
        if job.published_at is not None and instant > job.transaction_time:
            passed = [export_id]
        passed = _in_landing(runtime, site, passed)
        # What follows from them about their groups depends on their place among the others: their next load finds it anew.
        connection.execute("DELETE FROM group_export WHERE export_id = ANY(%s)", [passed])
        connection.commit()
    return Corrected(export_id, job.transaction_time, instant, passed)


def forget(runtime: Runtime, site: str, export_id: int) -> Corrected:
    """An export counts as if it had not come: everything else is newer, and it says nothing of its group any more.

    Its rows stay until the exports of `load_again`, or the next ones, bring those resources; its files stay in landing.
    Raises UsageError for one that is open at the site; WarehouseError, SiteBusy.
    """
    with runtime.connect() as connection, _export_locks(connection, site, export_id):
        job = _job_of(connection, site, export_id)
        if job.is_open and job.state != ExportState.LANDED:
            raise UsageError(
                f"Export {export_id} is {job.state}: it is not here yet.", _ADVICE_OF_OPEN.get(job.kind, "")
            )
        ids = _with_replays(connection, job)
        connection.execute(
            f"UPDATE export_job SET state = '{ExportState.FAILED}', published_at = NULL, error = 'It was forgotten by hand.'"
            " WHERE export_id = ANY(%s)",
            [ids],
        )
        connection.execute(
            # Not even the same line counts as unchanged: another export is to be the source of the rows.
            "UPDATE resource_state SET as_of = %s, raw_hash_high = 0, raw_hash_low = 0, content_hash = NULL"
            " WHERE export_id = ANY(%s)",
            [_BEFORE_ALL, ids],
        )
        connection.execute("DELETE FROM group_export WHERE export_id = ANY(%s)", [ids])
        connection.execute("DELETE FROM absent_resource WHERE last_export_id = ANY(%s)", [ids])
        connection.execute(
            "UPDATE dead_letter SET state = 'superseded', closed_at = %s, closed_by_export_id = %s"
            " WHERE export_id = ANY(%s) AND state = 'open'",
            [runtime.clock.now(), export_id, ids],
        )
        _derive_all_again(runtime, connection, site)
        newest = connection.execute(
            "SELECT export_id FROM (SELECT DISTINCT ON (kind, group_id) export_id, transaction_time FROM export_job"
            f" WHERE site = %s AND kind <> '{ExportKind.REPLAY}' AND state = '{ExportState.PUBLISHED}'"
            " ORDER BY kind, group_id, transaction_time DESC, export_id DESC) AS newest ORDER BY transaction_time, export_id",
            [site],
        ).fetchall()
        connection.commit()
    return Corrected(export_id, job.transaction_time, None, _in_landing(runtime, site, [row[0] for row in newest]))


@contextmanager
def _export_locks(connection: psycopg.Connection, site: str, export_id: int) -> Iterator[None]:
    """Neither a load of the site nor a download of this export runs meanwhile: each would write over what is corrected."""
    with site_lock(connection, site, SiteWork.INGEST), site_lock(connection, site, SiteWork.EXPORT, export_id):
        yield


def _job_of(connection: psycopg.Connection, site: str, export_id: int) -> ExportJob:
    job = export_jobs.find_job(connection, export_id)
    if job is None or job.site != site:
        raise UsageError(f"Site {site} has no export {export_id}.", "`epic-omop verify` lists the last exports.")
    return job


def _with_replays(connection: psycopg.Connection, job: ExportJob) -> list[int]:
    """The export, and the replays of its lines, which have its time."""
    rows = connection.execute(
        f"SELECT export_id FROM export_job WHERE site = %s AND (export_id = %s OR (kind = '{ExportKind.REPLAY}'"
        " AND transaction_time = %s))"
        " ORDER BY export_id",
        [job.site, job.export_id, job.transaction_time],
    ).fetchall()
    return [row[0] for row in rows]


def _retime_landed(runtime: Runtime, site: str, export_id: int, instant: datetime) -> None:
    if not runtime.landing.is_finished(site, export_id):
        return
    try:
        landed = runtime.landing.open(site, export_id)
    except LandingError as error:  # its lines cannot be loaded again anyway
        _log.warning("The time of export %d is not set in landing: %s", export_id, error.message)
        return
    runtime.landing.draft_of(site, export_id).write_manifest(replace(landed, transaction_time=instant))


def _derive_all_again(runtime: Runtime, connection: psycopg.Connection, site: str) -> None:
    """Ends of periods and open stays hang on the time of the last export: the next publication derives everybody's."""
    connection.execute(
        f"DELETE FROM {runtime.settings.cdm_schema}.metadata WHERE name = ANY(%s)",
        [[f"site/{site}/derived_rules", f"site/{site}/as_of_date"]],
    )


def _find_published(connection: psycopg.Connection, site: str, first: datetime, last: datetime) -> list[int]:
    rows = connection.execute(
        f"SELECT export_id FROM export_job WHERE site = %s AND kind <> '{ExportKind.REPLAY}' AND published_at IS NOT NULL"
        " AND transaction_time > %s AND transaction_time < %s ORDER BY transaction_time, export_id",
        [site, first, last],
    ).fetchall()
    return [row[0] for row in rows]


def _in_landing(runtime: Runtime, site: str, export_ids: Sequence[int]) -> list[int]:
    return [number for number in export_ids if runtime.landing.is_finished(site, number)]
