"""A folder of NDJSON on its way into landing, as an export of kind `folder`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from omop_schema.exports import ExportKind, ExportState
from pipeline.core.errors import EpicOmopError, SiteBusy
from pipeline.extract.bulk.states import new_job, save_error
from pipeline.landing.folder import land_folder, ndjson_files
from pipeline.landing.origin import ORIGIN_FILE, ExportOrigin, write_origin
from pipeline.landing.store import LandedExport, ProgressCallback
from pipeline.warehouse import export_jobs
from pipeline.warehouse.configured_sites import refuse_missing_site
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors

__all__ = ["folder_load", "ingest_folder"]


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
    ndjson_files(folder)  # a wrong folder is reported before anything is written
    with runtime.connect() as connection, export_jobs.site_lock(connection, site.name, export_jobs.SiteWork.FOLDER):
        refuse_missing_site(connection, runtime.settings, site.name)
        for left in export_jobs.unfinished_folder_jobs(connection, site.name):
            _end_folder(runtime, connection, left, "The process ended while the folder was copied.")
        job = new_job(runtime, connection, site.name, ExportKind.FOLDER, group=group)
        try:
            landed = land_folder(runtime.landing, site.name, job.export_id, folder, job.requested_at, progress)
        except EpicOmopError as error:
            _end_folder(runtime, connection, job, error.message)
            raise
        types: list[str] = []
        if complete and group:
            types = sorted({*(file.resource_type for file in landed.files), *site.empty_when_missing})
            export_jobs.save_asked_types(connection, job.export_id, types)
        write_origin(landed.folder, ExportOrigin(group, types, job.requested_at))
        export_jobs.save_landed(connection, landed, runtime.clock.now())
        connection.commit()
        return landed


@contextmanager
def folder_load(runtime: Runtime, site_name: str) -> Iterator[None]:
    """One landing and load of a folder at a time: whoever comes second is refused before anything is landed.

    For the landing and the load together, which take these locks themselves. What a load left that was killed after it
    had landed is taken away first, and so is what the block lands when it is interrupted: nothing of it was loaded, and
    its source is the user's. What waits for a person, such as for `--confirm`, stays, with its reason.
    Raises SiteBusy, WarehouseError.
    """
    name = runtime.settings.site_or_folder(site_name).name
    with (
        server_errors(),
        runtime.connect() as connection,
        export_jobs.site_lock(connection, name, export_jobs.SiteWork.INGEST, lent=True),
        export_jobs.site_lock(connection, name, export_jobs.SiteWork.FOLDER, lent=True),
    ):
        for left in _landed_folders(connection, name):
            if left.error is None and (runtime.landing.folder(name, left.export_id) / ORIGIN_FILE).exists():
                _end_folder(runtime, connection, left, _INTERRUPTED)
        before = {job.export_id for job in _landed_folders(connection, name)}
        connection.commit()
        try:
            yield
        except BaseException as error:
            ours = [job for job in _landed_folders(connection, name) if job.export_id not in before]
            for job in ours:
                if isinstance(error, EpicOmopError) and not isinstance(error, SiteBusy):
                    save_error(connection, job, error)
                else:
                    _end_folder(runtime, connection, job, _INTERRUPTED)
            raise


_INTERRUPTED = "It was interrupted before it was loaded: load the folder again."


def _landed_folders(connection: psycopg.Connection, site: str) -> list[ExportJob]:
    return export_jobs.jobs_of_kind(connection, site, ExportKind.FOLDER, ExportState.LANDED)


def _end_folder(runtime: Runtime, connection: psycopg.Connection, job: ExportJob, reason: str) -> None:
    runtime.landing.remove(job.site, job.export_id)
    export_jobs.mark_failed(connection, job.export_id, reason)
    connection.commit()
