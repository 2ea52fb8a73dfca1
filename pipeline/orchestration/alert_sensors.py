"""Sensors of the alerts: failed runs and those that succeed after them go into `etl.run_failure`, and every minute the
rules are asked and what is due is sent, as `epic-omop alerts run` does.

A daemon that is down cannot report itself: a timer outside of Dagster runs the command as well (docs/alerts.md). What
fails here is logged and tried at the next tick; it fails no run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG

from pipeline.core.errors import EpicOmopError
from pipeline.core.settings import Settings
from pipeline.core.workflow import working_as
from pipeline.operations.alerts.circumstances import DagsterState
from pipeline.operations.alerts.nights import is_nightly
from pipeline.operations.alerts.run import AlertsReport, run_alerts
from pipeline.operations.alerts.run_failures import (
    RunFailure,
    RunSubject,
    keep_run_failure,
    known_failures,
    resolve_run_failures,
)
from pipeline.orchestration.attempts import EXPORT_TAG
from pipeline.orchestration.switches import read_switches
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors

__all__ = ["alert_sensors", "keep_missing_failures", "read_dagster_state"]

_INTERVAL_SECONDS = 60
#: The daemon ends an evaluation after 60 s.
_SENDING_SECONDS = 35.0
#: Failures that could not be written when they happened are looked for so far back, and so many at most.
_LOOK_BACK = timedelta(days=2)
_MOST = 50
_SITE_TAG = "epic_omop/site"


def alert_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """`run_failures`, `run_successes` and `alerts`; on from the beginning."""
    return [_failures(settings), _successes(settings), _alerts(settings)]


def _failures(settings: Settings) -> dg.SensorDefinition:
    @dg.run_failure_sensor(
        name="run_failures",
        description="Keep each failed run in etl.run_failure, of which the rules of the alerts are a function.",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def run_failures(context: dg.RunFailureSensorContext, runtime: dg.ResourceParam[Runtime]) -> None:
        with _logged(context.log, "A failed run could not be kept for the alerts"), runtime.connect() as connection:
            keep_run_failure(connection, _failure_of(context.instance, settings, context.dagster_run))

    return run_failures


def _successes(settings: Settings) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name="run_successes",
        description="Failed runs are over when a later run of the same job, export and day succeeds.",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def run_successes(context: dg.RunStatusSensorContext, runtime: dg.ResourceParam[Runtime]) -> None:
        run = context.dagster_run
        with _logged(context.log, "A success could not be kept for the alerts"), runtime.connect() as connection:
            resolve_run_failures(connection, _subject_of(settings, run), _end_of(context.instance, run))

    return run_successes


def _alerts(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name="alerts",
        description="Look for what is wrong, and send what is due, each once to every channel (docs/alerts.md).",
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def alerts(context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]) -> dg.SkipReason:
        report = None
        with working_as("alerts"):
            with _logged(context.log, "Failed runs could not be looked for"):
                keep_missing_failures(context.instance, runtime)
            with _logged(context.log, "Alerts could not be looked for"):
                report = run_alerts(
                    runtime,
                    dagster=lambda: read_dagster_state(context.instance, settings),
                    most_seconds=_SENDING_SECONDS,
                )
        for channel, problem in report.failures if report else ():
            context.log.error("Channel %s: %s", channel, problem)
        return dg.SkipReason(
            _summary(report) if report else "Alerts could not be looked for: see the log of this tick."
        )

    return alerts


@contextmanager
def _logged(log: logging.Logger, what: str) -> Iterator[None]:
    """An error of ours or of the server is logged; sensor `alerts` tries again at its next tick."""
    try:
        with server_errors():
            yield
    except EpicOmopError as error:
        words = f"{what}: {error}"
        log.warning(words)


def keep_missing_failures(instance: dg.DagsterInstance, runtime: Runtime) -> None:
    """Failures and successes of the last days that could not be written when they happened: the database was away, or the
    sensors were off. Raises WarehouseError."""
    since = datetime.now(UTC) - _LOOK_BACK
    filters = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since)
    failed = [record.dagster_run for record in instance.get_run_records(filters, limit=_MOST)]
    if not failed:
        return
    settings = runtime.settings
    with server_errors(), runtime.connect() as connection:
        known = known_failures(connection, [run.run_id for run in failed])
        for run in failed:
            if run.run_id not in known:
                keep_run_failure(connection, _failure_of(instance, settings, run))
            if not known.get(run.run_id, False) and (again := _later_success(instance, settings, run)):
                resolve_run_failures(connection, _subject_of(settings, run), again)


def _later_success(instance: dg.DagsterInstance, settings: Settings, failed: dg.DagsterRun) -> datetime | None:
    """When a run of the same subject succeeded after it."""
    failed_at = _end_of(instance, failed)
    filters = dg.RunsFilter(job_name=failed.job_name, statuses=[dg.DagsterRunStatus.SUCCESS], updated_after=failed_at)
    subject = _subject_of(settings, failed)
    for record in instance.get_run_records(filters, limit=_MOST):
        ended = _end_of(instance, record.dagster_run)
        if _subject_of(settings, record.dagster_run) == subject and ended >= failed_at:
            return ended
    return None


def read_dagster_state(instance: dg.DagsterInstance, settings: Settings) -> DagsterState:
    """Whether the daemon lives, and which sites' schedules are off."""
    switches = {site.name: read_switches(instance, site) for site in settings.sites.values() if is_nightly(site)}
    alive = any(one.daemon for one in switches.values())
    return DagsterState(alive, frozenset(name for name, one in switches.items() if not one.schedule))


def _failure_of(instance: dg.DagsterInstance, settings: Settings, run: dg.DagsterRun) -> RunFailure:
    return RunFailure(run.run_id, _subject_of(settings, run), _end_of(instance, run), _error_of(instance, run))


def _subject_of(settings: Settings, run: dg.DagsterRun) -> RunSubject:
    tag = run.tags.get(EXPORT_TAG, "")
    export_id = int(tag) if tag.isdecimal() else None
    return RunSubject(run.job_name, _site_of(settings, run), export_id, run.tags.get(PARTITION_NAME_TAG))


def _end_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> datetime:
    record = instance.get_run_record_by_id(run.run_id)
    return datetime.fromtimestamp(record.end_time, UTC) if record and record.end_time else datetime.now(UTC)


def _error_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The description of our own failure (`pipeline.orchestration.failures`); of any other, its class and the step."""
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    for entry in events:
        event = entry.dagster_event
        data = event.step_failure_data if event else None
        if data is None:
            continue
        if data.user_failure_data is not None and data.user_failure_data.description:
            return str(data.user_failure_data.description)
        name = data.error.cls_name if data.error else None
        return f"Step {event.step_key if event else ''} ended with {name or 'an unknown error'}."
    return "The run ended without a failed step: its process was killed, or could not start. See the run in the UI."


def _site_of(settings: Settings, run: dg.DagsterRun) -> str | None:
    """By the run's tag; of a run that was started from the assets by these."""
    named = run.tags.get(_SITE_TAG) or run.job_name.partition("__")[0]
    if named in settings.sites:
        return named
    owners = {key.path[0] for key in run.asset_selection or () if len(key.path) > 1}
    return owners.pop() if len(owners) == 1 and owners <= set(settings.sites) else None


def _summary(report: AlertsReport) -> str:
    if report.away is not None:
        return f"The warehouse cannot be used: {report.away}"
    recorded = report.recorded
    open_alerts = f"{recorded.open} alerts are open" if recorded else "Nothing was recorded"
    failed = f"; not delivered: {', '.join(sorted({name for name, _ in report.failures}))}" if report.failures else ""
    return f"{open_alerts}; {len(report.sent)} messages sent{failed}."
