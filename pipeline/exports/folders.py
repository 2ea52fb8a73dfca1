"""A folder of NDJSON on its way into landing, as an export of kind `folder`."""

from __future__ import annotations

from pathlib import Path

import psycopg

from pipeline.errors import EpicOmopError
from pipeline.exports.states import new_job
from pipeline.landing.folder import ndjson_files
from pipeline.landing.store import LandedExport, ProgressCallback
from pipeline.runtime import Runtime
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob

__all__ = ["ingest_folder"]


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
    ConfigurationError for an impossible site name, SiteBusy while another process ingests, LandingError.
    """
    site = runtime.settings.site_or_folder(site_name)
    ndjson_files(folder)  # a wrong folder is told before anything is written
    with runtime.connect() as connection, export_jobs.site_lock(connection, site.name, "the ingest of a folder"):
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
