"""The job `retention` and its daily schedule: what `epic-omop retention run` does, from Dagster."""

# No `from __future__ import annotations`: Dagster compares the annotation of `context` as an object.

from dataclasses import dataclass

import dagster as dg
from pydantic import Field

from pipeline.core.settings import Settings
from pipeline.core.workflow import working_as
from pipeline.operations.retention.items import ItemReport
from pipeline.operations.retention.run import ITEMS, run_retention, settings_or_defaults
from pipeline.orchestration.dagster_retention import dagster_items
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.run_metadata import table_value
from pipeline.warehouse.runtime import Runtime

__all__ = ["RETENTION_JOB", "RetentionForm", "RetentionParts", "retention_parts"]

RETENTION_JOB = "retention"


class RetentionForm(dg.Config):
    """What a person may choose."""

    dry_run: bool = Field(default=False, description="Only show what would go, and why what stays is kept.")
    only: list[str] = Field(default=[], description="Only these items, such as dagster_runs; empty: all.")


@dataclass(frozen=True)
class RetentionParts:
    job: dg.JobDefinition
    schedule: dg.ScheduleDefinition


def retention_parts(settings: Settings) -> RetentionParts:
    """The job, and its schedule, which is on from the first day: nothing goes that is needed."""

    @dg.op(
        name="keep_what_is_needed",
        description="Remove what is older than `retention:` of operations.yaml and not needed any more.",
        out=dg.Out(dg.Nothing),
    )
    def retention_op(context: dg.OpExecutionContext, config: RetentionForm, runtime: dg.ResourceParam[Runtime]) -> None:
        with raise_as_failures(), working_as(context.job_name, context.run_id):
            items = (*ITEMS, *dagster_items(context.instance))
            reports = []
            for report in run_retention(runtime, items, is_dry=config.dry_run, only=config.only):
                reports.append(report)
                log = context.log.warning if report.problem else context.log.info
                log("%s: %d %s. %s", *(report.name, report.removed, report.what, report.problem or _why(report)))
        context.add_output_metadata(
            {
                "dry run": dg.MetadataValue.bool(config.dry_run),
                "removed": table_value(
                    ("item", "setting", "removed", "what", "bytes", "problem"),
                    [
                        (one.name, one.setting, one.removed, one.what, one.bytes or 0, one.problem or "–")
                        for one in reports
                    ],
                ),
                "kept": table_value(
                    ("item", "count", "why"), [(one.name, kept.count, kept.why) for one in reports for kept in one.kept]
                ),
            }
        )
        failed = [report.name for report in reports if report.problem]
        if failed:
            raise dg.Failure(f"Retention of {', '.join(failed)} failed; the log says why. The others are done.")

    @dg.job(
        name=RETENTION_JOB,
        description="Remove what has grown old and is not needed: landing, staging, Dagster's runs and logs, history of `etl`,"
        " snapshots, releases. With `dry_run` only say what would go. docs/retention.md.",
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        retention_op()

    schedule = dg.ScheduleDefinition(
        name="retention__daily",
        job=job,
        cron_schedule=settings_or_defaults(settings).schedule,
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return RetentionParts(job, schedule)


def _why(report: ItemReport) -> str:
    return "; ".join(f"{kept.count} kept: {kept.why}" for kept in report.kept)
