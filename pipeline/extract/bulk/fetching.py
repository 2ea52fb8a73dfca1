"""A complete export: its files into landing, its notes logged, its job deleted on the server."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import NoReturn

import psycopg

from omop_schema.exports import ExportState
from pipeline.core.errors import (
    EpicOmopError,
    ExportGone,
    ExportNotReady,
    LandingError,
    PermanentError,
    UnusableAddress,
)
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import names_export
from pipeline.extract.bulk import protocol
from pipeline.extract.bulk.download import ExportDownload
from pipeline.extract.bulk.protocol import Manifest
from pipeline.extract.bulk.states import keep_cool_down, save_error, session_of
from pipeline.extract.notes import export_notes
from pipeline.extract.smart.session import EpicSession
from pipeline.landing.origin import read_origin
from pipeline.landing.store import LandedExport, ProgressCallback
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = ["download", "types_not_received"]

_log = logging.getLogger(__name__)


def download(
    runtime: Runtime, job: ExportJob, progress: ProgressCallback | None = None, *, session: EpicSession | None = None
) -> LandedExport:
    """Fetch the files of a complete export that are not there yet, verify, land, delete the job on the server.

    For a landed export, returns what is in the store. Files that are lost, and those that cannot be had for a whole
    window after the manifest came, are left out (`etl.export_gap`); the job then stays on the server. Raises
    ExportNotReady for one that runs, SiteBusy while another process downloads it, ExportGone or UnusableAddress when no
    file is left (saved as `failed`), and what `protocol.download` and the landing store raise; then calling it again continues
    where it stopped.
    """
    site = runtime.settings.site(job.site)
    with (
        runtime.connect() as connection,
        export_jobs.site_lock(connection, site.name, export_jobs.SiteWork.EXPORT, job.export_id),
    ):
        job = export_jobs.get_job(connection, job.export_id)
        connection.commit()
        if job.state in (ExportState.REQUESTED, ExportState.RUNNING):
            message = f"Export {job.export_id} of site {job.site} still runs at the site."
            raise ExportNotReady(message, "Ask for its status again later.", next_try=job.next_poll_at)
        with session_of(runtime, site, session) as used:
            landed = _land(runtime, connection, used, job, progress)
            if all(gap.reason == "count" for gap in read_origin(landed.folder).gaps):
                _delete_on_server(runtime, connection, used, job)
        return landed


def _land(
    runtime: Runtime,
    connection: psycopg.Connection,
    session: EpicSession,
    job: ExportJob,
    progress: ProgressCallback | None,
) -> LandedExport:
    if job.state == ExportState.COMPLETE:
        try:
            landed = _fetch(runtime, session, job, progress)
        except (ExportGone, UnusableAddress) as error:
            _end(
                connection,
                session.site,
                job,
                error,
                "files of its last export could not be had, and Epic allows one in this time",
            )
        except EpicOmopError as error:
            save_error(connection, job, error)
            raise
        export_jobs.save_landed(connection, landed, runtime.clock.now(), read_origin(landed.folder).gaps)
        connection.commit()
        _log_notes(connection, job)
        connection.commit()
        return landed
    try:
        return runtime.landing.open(job.site, job.export_id)
    except LandingError as error:
        if job.state == ExportState.LANDED:  # otherwise this group could never be exported again
            export_jobs.mark_failed(connection, job.export_id, error.message)
            connection.commit()
        raise


def _end(
    connection: psycopg.Connection, site: SiteSettings, job: ExportJob, error: PermanentError, reason: str
) -> NoReturn:
    """The export cannot be had any more. The server's job stays."""
    if export_jobs.get_job(connection, job.export_id).is_open:
        export_jobs.mark_failed(connection, job.export_id, error.message)
        keep_cool_down(connection, site, job, reason)
        connection.commit()
    raise error


@names_export
def _fetch(runtime: Runtime, session: EpicSession, job: ExportJob, progress: ProgressCallback | None) -> LandedExport:
    if runtime.landing.is_finished(job.site, job.export_id):  # the process ended before the warehouse knew
        return runtime.landing.open(job.site, job.export_id)
    draft = runtime.landing.begin(job.site, job.export_id)
    instant = job.transaction_time or job.requested_at

    def save_manifest(manifest: Manifest) -> None:  # called from a thread of the download
        with runtime.connect() as connection:
            export_jobs.save_manifest(connection, job.export_id, manifest.to_json(), instant)

    window = timedelta(hours=session.site.kickoff_window_hours)
    is_last_try = job.complete_since is not None and runtime.clock.now() - job.complete_since >= window
    return ExportDownload(
        session, job, draft, save_manifest=save_manifest, progress=progress, is_last_try=is_last_try
    ).run()


@names_export
def _delete_on_server(runtime: Runtime, connection: psycopg.Connection, session: EpicSession, job: ExportJob) -> None:
    """Rule 3: after a clean download. Best effort: a job that stays is deleted by the server in 14 days."""
    if job.deleted_at is not None or job.status_url is None:
        return
    try:
        protocol.delete_job(session, job.status_url)
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


def _log_notes(connection: psycopg.Connection, job: ExportJob) -> None:
    """Types that did not come, and what the site says: from the warehouse, where everybody finds it."""
    for sentence in export_notes(connection, [job.export_id]).sentences():
        _log.warning("Export %d of site %s: %s", job.export_id, job.site, sentence)
