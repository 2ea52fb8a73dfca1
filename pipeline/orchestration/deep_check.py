"""Asset check `deep`: each night, a few persons of each site are loaded afresh beside the warehouse and compared.

A job and a schedule of its own: it asks nothing of a site, waits for no export, and no export waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from pipeline.core.settings import Settings, SiteSettings
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.run_metadata import table_value
from pipeline.orchestration.site_assets import load_key
from pipeline.quality.deep.model import DeepReport, DeepRequest
from pipeline.quality.deep.run import verify_deep
from pipeline.warehouse.runtime import Runtime

__all__ = ["DeepParts", "deep_check_key", "deep_parts"]

#: Persons of each site that are compared in a night.
_PERSONS = 50

#: In the instance's zone: after the night's loads.
_CRON = "30 5 * * *"

_NAME = "deep"
_MOST_SHOWN = 50


@dataclass(frozen=True)
class DeepParts:
    checks: list[dg.AssetChecksDefinition]
    job: dg.JobDefinition | dg.UnresolvedAssetJobDefinition
    schedule: dg.ScheduleDefinition


def deep_check_key(site: SiteSettings) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(load_key(site), _NAME)


def deep_parts(settings: Settings, sites: Sequence[SiteSettings]) -> DeepParts:
    """The check of every site, the job that runs them one after the other, and its schedule."""
    job = dg.define_asset_job(
        "deep_check",
        dg.AssetSelection.checks(*(deep_check_key(site) for site in sites)),
        description="Load some persons of each site afresh, into scratch schemas, and compare all their rows.",
        executor_def=dg.in_process_executor,
    )
    schedule = dg.ScheduleDefinition(
        name="deep_check__nightly",
        job=job,
        cron_schedule=_CRON,
        execution_timezone=settings.time_zone,
        # It asks no site for anything.
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return DeepParts([_check(site) for site in sites], job, schedule)


def _check(site: SiteSettings) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=load_key(site),
        name=_NAME,
        description=(
            f"Rows and links of {_PERSONS} persons, other ones each day, are what a fresh load of their landed lines makes"
            " (docs/verify.md)."
        ),
    )
    def deep(runtime: dg.ResourceParam[Runtime]) -> dg.AssetCheckResult:
        request = DeepRequest(_PERSONS, site.name, runtime.clock.now().astimezone(site.zone).toordinal())
        try:
            with raise_as_failures():
                report = verify_deep(runtime, request)
        except dg.Failure as failure:
            return dg.AssetCheckResult(
                passed=False,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"Nothing was compared. {failure.description}",
                metadata={"seed": request.seed},
            )
        return _result(request, report)

    return deep


def _result(request: DeepRequest, report: DeepReport) -> dg.AssetCheckResult:
    """Counts alone: neither values nor ids."""
    rows = [
        (difference.table, difference.resource_type, difference.column or difference.kind, difference.count)
        for difference in report.differences[:_MOST_SHOWN]
    ]
    different = sum(difference.count for difference in report.differences)
    return dg.AssetCheckResult(
        passed=report.ok,
        severity=dg.AssetCheckSeverity.ERROR,
        description=(
            f"{report.persons} persons, {report.rows.total()} rows compared; {different} differences."
            + ("" if report.ok else f" `epic-omop verify --deep --seed {request.seed}` names the rows.")
        ),
        metadata={
            "seed": request.seed,
            "persons": report.persons,
            "persons that are not compared": report.persons_left_out,
            "resources": report.resources,
            "rows": report.rows.total(),
            "differences": different,
            "seconds": report.seconds,
            "by table": table_value(("table", "resource type", "what", "rows"), rows),
        },
    )
