"""Asset `lakehouse`: a Parquet snapshot of the CDM, by its own cron; made only where EPIC_OMOP_LAKEHOUSE names a folder.

It follows the clock and not the loads: a snapshot is of all sites together, and one a day is what readers go by.
"""

# No `from __future__ import annotations`: Dagster compares the annotation of `context` as an object.

from dataclasses import dataclass
from importlib.metadata import version

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from omop_schema.etl import LINEAGE_TABLES
from pipeline.core.retention_settings import number_of
from pipeline.core.settings import Settings
from pipeline.core.workflow import working_as
from pipeline.lakehouse.snapshot import SnapshotOptions, SnapshotReport, publish_snapshot
from pipeline.lakehouse.store import lakehouse_folder
from pipeline.operations.retention.run import settings_or_defaults
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.run_metadata import Metadata, table_value
from pipeline.warehouse.runtime import Runtime

__all__ = ["LakehouseParts", "lakehouse_parts"]

_NAME = "lakehouse"
_ALL = 1_000_000


@dataclass(frozen=True)
class LakehouseParts:
    asset: dg.AssetsDefinition
    job: UnresolvedAssetJobDefinition
    schedule: dg.ScheduleDefinition


def lakehouse_parts(settings: Settings, blocking: dg.AssetSelection | None) -> LakehouseParts:
    """The asset, the job that makes it after the checks that it waits for, and the schedule of that job, which is on from the
    first day."""
    asset = _asset(settings)
    job = dg.define_asset_job(
        "lakehouse__publish",
        dg.AssetSelection.assets(asset.key) | blocking if blocking else dg.AssetSelection.assets(asset.key),
        description="Check the warehouse, then write the CDM as a Parquet snapshot and make it the latest.",
        executor_def=dg.in_process_executor,
    )
    schedule = dg.ScheduleDefinition(
        name="lakehouse__daily",
        job=job,
        cron_schedule=settings.lakehouse_schedule,
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return LakehouseParts(asset, job, schedule)


def _asset(settings: Settings) -> dg.AssetsDefinition:
    folder = settings.lakehouse or ""

    @dg.asset(
        key=[_NAME],
        deps=[dg.AssetKey([settings.cdm_schema, table]) for table in LINEAGE_TABLES],
        description="The CDM as Parquet, one consistent state for DuckDB and Spark, as `epic-omop lakehouse snapshot`"
        " writes it: docs/lakehouse.md.",
        group_name="cdm",
        kinds={"parquet"},
        metadata={"folder": folder},
        code_version=version("epic-omop"),
        pool=_NAME,
    )
    def lakehouse(context: dg.AssetExecutionContext, runtime: dg.ResourceParam[Runtime]) -> dg.MaterializeResult[None]:
        with raise_as_failures(), working_as(context.job_name, context.run.run_id):
            return dg.MaterializeResult(
                metadata=_metadata(publish_snapshot(runtime, lakehouse_folder(folder), _options(settings)))
            )

    return lakehouse


def _options(settings: Settings) -> SnapshotOptions:
    """As many older snapshots stay as `retention:` of operations.yaml says."""
    number = number_of(settings_or_defaults(settings).lakehouse_snapshots)
    return SnapshotOptions(keep=_ALL if number is None else number - 1)


def _metadata(report: SnapshotReport) -> Metadata:
    vocabulary = report.metadata["vocabulary"]
    rows = [(path, *counts) for path, counts in report.tables.items()]
    return {
        "dagster/row_count": dg.MetadataValue.int(report.rows),
        "bytes": dg.MetadataValue.int(report.bytes),
        "files": dg.MetadataValue.int(sum(files for _, files, _ in report.tables.values())),
        "snapshot": dg.MetadataValue.text(report.snapshot),
        "vocabulary release": dg.MetadataValue.text(vocabulary["release"] if vocabulary else "–"),
        "tables": table_value(("table", "rows", "files", "bytes"), rows),
    }
