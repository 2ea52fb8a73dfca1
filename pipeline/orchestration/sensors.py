"""The export sensor: one a site. It asks Epic for the status of open exports when that is due, requests ingests, and the
kick-offs of groups that were refused for now.

One evaluation makes a few short GET requests and sleeps never. What is due is in `etl.export_job` and
`etl.next_kick_off`, so the sensor has no cursor: it can be stopped, started and run twice. The run key keeps the daemon
from requesting a run twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from omop_schema.exports import ExportState
from pipeline.core.errors import EpicOmopError
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import working_as
from pipeline.extract import bulk
from pipeline.orchestration.attempts import EXPORT_TAG, WAITING, run_key
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.jobs import DUE_TAG, ingest_job_name, kick_off_job_name
from pipeline.orchestration.partitions import day_of
from pipeline.orchestration.switches import sensor_name
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.next_kick_offs import due_kick_offs, next_kick_offs
from pipeline.warehouse.runtime import Runtime

__all__ = ["PollResult", "export_sensor", "poll_open_exports"]

_INTERVAL_SECONDS = 30

_HOUR = timedelta(hours=1)

#: The daemon ends an evaluation after 60 s, and a status request may take 20 s.
_REQUESTS_AN_EVALUATION = 2


@dataclass(frozen=True)
class PollResult:
    """What an evaluation found: ingests to request, why other exports wait, what went wrong, when to ask again; and the
    kick-offs to request."""

    requests: tuple[dg.RunRequest, ...]
    waiting: tuple[str, ...]
    errors: tuple[str, ...]
    waiting_ids: tuple[int, ...]
    next_due: datetime | None
    kick_offs: tuple[dg.RunRequest, ...] = ()


def export_sensor(
    site: SiteSettings, ingest: UnresolvedAssetJobDefinition, kick_off: dg.JobDefinition
) -> dg.SensorDefinition:
    @dg.sensor(
        name=sensor_name(site),
        description=(
            f"Asks for the status of site {site.name}'s open exports when it is due (never sooner than Epic allows),"
            " and requests an ingest run for each that is complete. Kick-offs that were refused for now are requested"
            " when their next try is due."
        ),
        jobs=[ingest, kick_off],
        minimum_interval_seconds=_INTERVAL_SECONDS,
        # A real site's is switched on with its schedule; the simulated one costs nobody anything.
        default_status=dg.DefaultSensorStatus.RUNNING if site.test_mode else dg.DefaultSensorStatus.STOPPED,
    )
    def exports_of_site(context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]) -> dg.SensorResult:
        with raise_as_failures(), working_as(sensor_name(site)):
            result = poll_open_exports(runtime, site)
        for error in result.errors:
            context.log.error(error)
        if result.requests or result.kick_offs:
            return dg.SensorResult(run_requests=[*result.requests, *result.kick_offs])
        summary = " ".join((*result.errors, *result.waiting, *_next_summaries(runtime, site)))
        return dg.SensorResult(skip_reason=summary or f"Site {site.name} has no open export.")

    return exports_of_site


def poll_open_exports(runtime: Runtime, site: SiteSettings) -> PollResult:
    """Ask for what is due, at most two status requests of 20 s each; everything learned is saved.

    An error of one export is reported and does not delay the others.
    """
    jobs, errors = _ask(runtime, site, _open_jobs(runtime, site))
    now = runtime.clock.now()
    ready = [job for job in jobs if job.state in WAITING and _is_due(job, now)]
    waiting = [job for job in jobs if job.is_open and job not in ready]
    times = [job.next_poll_at or now for job in waiting if job.state != ExportState.REQUESTED]
    return PollResult(
        tuple(_request(site, job) for job in ready),
        tuple(_summary(job) for job in waiting),
        tuple(errors),
        tuple(job.export_id for job in waiting),
        min(times, default=None),
        _kick_offs(runtime, site, now),
    )


def _kick_offs(runtime: Runtime, site: SiteSettings, now: datetime) -> tuple[dg.RunRequest, ...]:
    """At most one request, for all groups whose next kick-off is due. A run that died without trying is requested again
    in the next hour."""
    with runtime.connect() as connection:
        due = due_kick_offs(connection, site, now)
    if not due:
        return ()
    tries = sorted(f"{entry.group_id}:{entry.next_try.isoformat()}:{(now - entry.next_try) // _HOUR}" for entry in due)
    key = hashlib.sha256("\n".join(tries).encode()).hexdigest()[:16]
    tags = {DUE_TAG: "yes", "epic_omop/day": day_of(site, now)}
    return (dg.RunRequest(run_key=f"kick-off:{key}", job_name=kick_off_job_name(site), tags=tags),)


def _next_summaries(runtime: Runtime, site: SiteSettings) -> list[str]:
    with runtime.connect() as connection:
        return [
            f"Group {entry.group_id} is kicked off again at {entry.next_try:%Y-%m-%d %H:%M} UTC: {entry.reason}"
            for entry in next_kick_offs(connection, site)
        ]


def _open_jobs(runtime: Runtime, site: SiteSettings) -> list[ExportJob]:
    """Those that wait the longest for being asked come first."""
    with runtime.connect() as connection:
        found = [export_jobs.open_job(connection, site.name, group) for group in site.groups]
    return sorted((job for job in found if job), key=lambda job: job.next_poll_at or job.requested_at)


def _ask(runtime: Runtime, site: SiteSettings, jobs: Sequence[ExportJob]) -> tuple[list[ExportJob], list[str]]:
    """The jobs after those that are due were asked for, and what went wrong."""
    now = runtime.clock.now()
    due = [job.export_id for job in jobs if job.state == ExportState.RUNNING and _is_due(job, now)][
        :_REQUESTS_AN_EVALUATION
    ]
    result, errors = [], []
    for job in jobs:
        if job.export_id not in due:
            result.append(job)
            continue
        try:
            result.append(bulk.poll_once(runtime, job))
        except EpicOmopError as error:
            errors.append(f"Export {job.export_id}: {error.message} {error.advice}".strip())
            result.append(_after_error(runtime, site, job, error))
    return result, errors


def _after_error(runtime: Runtime, site: SiteSettings, job: ExportJob, error: EpicOmopError) -> ExportJob:
    """An export that is still open waits for a person (a key, a scope): ask rarely, not at every evaluation."""
    with runtime.connect() as connection:
        job = export_jobs.get_job(connection, job.export_id)
        if job.state != ExportState.RUNNING:
            return job
        later = runtime.clock.now() + timedelta(seconds=site.poll_ceiling_seconds)
        return export_jobs.save_poll(connection, job.export_id, next_poll_at=later, error=error.message)


def _is_due(job: ExportJob, now: datetime) -> bool:
    return job.next_poll_at is None or job.next_poll_at <= now


def _request(site: SiteSettings, job: ExportJob) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=run_key(job),
        job_name=ingest_job_name(site),
        partition_key=day_of(site, job.requested_at),
        tags={EXPORT_TAG: str(job.export_id), "epic_omop/attempt": str(job.attempt)},
    )


def _summary(job: ExportJob) -> str:
    why = f": {job.error}" if job.error else "."
    until = f"; asked again at {job.next_poll_at:%Y-%m-%d %H:%M} UTC" if job.next_poll_at else ""
    return f"Export {job.export_id} is {job.state}{until}{why}"
