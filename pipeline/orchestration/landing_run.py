"""Which exports a run is about, and how they come into landing. Without Dagster's contexts, so that it reads plainly.

A run that the sensor requested is about one export (its tag). A run that a person starts is about a day: for a past
day what was exported then; for today it also opens or adopts the exports of groups that have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from omop_schema.exports import STATES_WITH_FILES, ExportKind, ExportState
from pipeline.core.errors import CooldownActive, EpicOmopError, ExportNotReady
from pipeline.core.settings import SiteSettings
from pipeline.extract import bulk
from pipeline.landing.store import LandedExport
from pipeline.orchestration.partitions import day_of, jobs_of_day, landed_jobs_of_day
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = ["DayLanding", "RunScope", "land", "landed_jobs"]

#: A run that a person started waits so long for the simulated Epic; for a real site it asks once and leaves the rest
#: to the sensor.
_PATIENCE = timedelta(seconds=60)

_HAS_FILES = STATES_WITH_FILES
_LIVE = (ExportState.RUNNING, ExportState.COMPLETE, *_HAS_FILES)

Report = Callable[[str], None]


@dataclass(frozen=True)
class RunScope:
    """The partition of a run, and the export that it was requested for, if the sensor did."""

    day: str
    export_id: int | None = None
    #: A person has confirmed that vanished resources may be deleted, however many.
    confirmed: bool = False


@dataclass
class DayLanding:
    """What is landed now, and which groups are in their cool-down (Epic allows one kick-off of a group in its window)."""

    landed: list[LandedExport] = field(default_factory=list)
    cool_downs: list[CooldownActive] = field(default_factory=list)


def land(runtime: Runtime, site: SiteSettings, scope: RunScope, report: Report) -> DayLanding:
    """Bring the exports of a run into landing.

    Raises ExportNotReady when one still runs at the site, and what `pipeline.extract.bulk` raises.
    """
    result = DayLanding()
    for job in _jobs(runtime, site, scope, result.cool_downs):
        complete = _wait_for(runtime, site, job, report)
        report(f"Export {job.export_id}: fetching and verifying the files that are not there yet.")
        if complete.kind == ExportKind.BULK and complete.state != ExportState.PUBLISHED:
            landed = bulk.download(runtime, complete)
        else:  # a folder; or published, when its files are final and the site is not asked
            landed = runtime.landing.open(site.name, job.export_id)
        result.landed.append(landed)
    return result


def landed_jobs(runtime: Runtime, site: SiteSettings, scope: RunScope) -> list[ExportJob]:
    """The exports of a run that can be loaded, oldest first. Raises ExportNotReady if the sensor's is not landed."""
    if scope.export_id is None:
        with runtime.connect() as connection:
            return landed_jobs_of_day(connection, site, scope.day)
    job = _job(runtime, scope.export_id)
    if job.state not in _HAS_FILES:
        raise ExportNotReady(
            f"Export {job.export_id} of site {site.name} is {job.state}, not landed.", "Materialize landing first."
        )
    return [job]


def _job(runtime: Runtime, export_id: int) -> ExportJob:
    with runtime.connect() as connection:
        return export_jobs.get_job(connection, export_id)


def _jobs(runtime: Runtime, site: SiteSettings, scope: RunScope, cool_downs: list[CooldownActive]) -> list[ExportJob]:
    if scope.export_id is not None:
        return [_job(runtime, scope.export_id)]
    with runtime.connect() as connection:
        jobs = [job for job in jobs_of_day(connection, site, scope.day) if job.state in _LIVE]
    if scope.day == day_of(site, runtime.clock.now()) and site.fhir_url:
        missing = [group for group in site.groups if group not in {job.group_id for job in jobs}]
        jobs += _open(runtime, site, scope.day, missing, cool_downs)
    return jobs


def _open(
    runtime: Runtime, site: SiteSettings, day: str, groups: list[str], cool_downs: list[CooldownActive]
) -> list[ExportJob]:
    """Open or adopt each group's export. Raises the first failure after all groups had their turn."""
    jobs: list[ExportJob] = []
    failures: list[EpicOmopError] = []
    for group in groups:
        try:
            job = bulk.open_or_adopt(runtime, site, group)
            if (opened_on := day_of(site, job.requested_at)) != day:
                raise ExportNotReady(
                    f"Export {job.export_id} of group {group}, begun on {opened_on}, is still {job.state}.",
                    f"It belongs to the partition {opened_on}; the sensor loads it there when it is ready.",
                )
            jobs.append(job)
        except CooldownActive as cool_down:
            cool_downs.append(cool_down)
        except EpicOmopError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return jobs


def _wait_for(runtime: Runtime, site: SiteSettings, job: ExportJob, report: Report) -> ExportJob:
    """The job when it is complete. A real site is asked once; a simulated one for as long as our patience lasts."""
    reported = ""
    give_up = runtime.clock.now() + (_PATIENCE if site.test_mode else timedelta())
    while True:
        job = bulk.poll_once(runtime, job)
        if job.state != ExportState.RUNNING:
            return job
        now = runtime.clock.now()
        if now >= give_up:
            raise ExportNotReady(
                _state_summary(job),
                "The sensor ingests it when it is ready; nothing needs to be done.",
                next_try=job.next_poll_at,
            )
        if _state_summary(job) != reported:
            reported = _state_summary(job)
            report(reported)
        pause = (job.next_poll_at - now).total_seconds() if job.next_poll_at else 1.0
        runtime.clock.sleep(max(pause, 0.1))


def _state_summary(job: ExportJob) -> str:
    if job.error:
        return f"Export {job.export_id} is running at the site; the last status request failed: {job.error}"
    return f"Export {job.export_id} is running at the site{f' ({job.progress})' if job.progress else ''}."
