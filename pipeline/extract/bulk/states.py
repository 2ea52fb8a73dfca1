"""What all steps of an export's life share: its row, how it ends, the cool-down of its group, the session with its site.

No request is sent here, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

import psycopg

from omop_schema.exports import ExportKind
from pipeline.core.errors import EpicOmopError
from pipeline.core.settings import SiteSettings
from pipeline.extract.site_session import site_session
from pipeline.extract.smart.session import EpicSession
from pipeline.warehouse import crawls, export_jobs
from pipeline.warehouse.export_jobs import CoolDown, ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = ["WINDOW_MARGIN", "keep_cool_down", "new_job", "save_error", "session_of"]

#: Epic counts its window from when it saw the kick-off, by its own clock. What is added each night is what the exports
#: of a group are later each night, so it is small; where it is too small, the next try is ten minutes later.
WINDOW_MARGIN = timedelta(minutes=1)


def new_job(
    runtime: Runtime,
    connection: psycopg.Connection,
    site_name: str,
    kind: ExportKind,
    *,
    group: str | None = None,
    resource_types: Sequence[str] = (),
    patients: Sequence[str] = (),
    since: datetime | None = None,
    notes: Sequence[str] = (),
) -> ExportJob:
    """A committed `requested` row, under an id that the landing store does not know either; of a crawl, with its list.

    The store may be older than the warehouse: a new database begins to count at 1 again.
    """
    export_id = export_jobs.next_export_id(connection)
    while _is_landed(runtime, export_id):
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
        notes=notes,
    )
    if patients:
        crawls.add_patients(connection, export_id, patients)
    connection.commit()
    return job


def _is_landed(runtime: Runtime, export_id: int) -> bool:
    """Of any site: a folder that the warehouse does not know can be registered only under its own number."""
    root = runtime.landing.root
    return root.is_dir() and any((site / str(export_id)).exists() for site in root.iterdir())


def keep_cool_down(connection: psycopg.Connection, site: SiteSettings, job: ExportJob, reason: str) -> datetime:
    """No kick-off of this group until the window of this job's kick-off has passed, which is the result."""
    end = job.requested_at + timedelta(hours=site.kickoff_window_hours) + WINDOW_MARGIN
    group = job.group_id or ""
    export_jobs.put_cool_down(connection, site.name, site.client_id or "", group, CoolDown(end, f"{reason}."))
    return end


def save_error(connection: psycopg.Connection, job: ExportJob, error: EpicOmopError) -> None:
    export_jobs.save_error(connection, job.export_id, error.message)
    connection.commit()


@contextmanager
def session_of(runtime: Runtime, site: SiteSettings, given: EpicSession | None) -> Iterator[EpicSession]:
    """The caller's session, or one for this step alone."""
    if given is not None:
        yield given
        return
    with site_session(runtime, site) as session:
        yield session
