"""A complete export: its files into landing, its notes told, its job deleted on the server."""

from __future__ import annotations

import logging
from typing import NoReturn

import psycopg

from pipeline.epic import bulk_export
from pipeline.epic.bulk_export import Manifest
from pipeline.epic.session import EpicSession
from pipeline.errors import EpicOmopError, ExportGone, ExportNotReady, LandingError
from pipeline.export_files import ExportDownload
from pipeline.exports.states import rest, save_error, session_of
from pipeline.landing.store import LandedExport, ProgressCallback
from pipeline.quality.export_notes import export_notes
from pipeline.runtime import Runtime
from pipeline.settings import SiteSettings
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob

__all__ = ["download", "types_not_received"]

_log = logging.getLogger(__name__)


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
        with session_of(runtime, site, session) as used:
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
            save_error(connection, job, error)
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
        rest(connection, site, job, "files of its last export were lost, and Epic allows one in this time")
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
