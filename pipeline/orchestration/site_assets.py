"""Assets of one site, made by `site_assets`: `<site>/landing` and `<site>/load`, one partition a day.

There is no staging asset: transform and publish are one step (`pipeline.load.load`), whose Parquet parts are
removed when their transaction has committed.
"""

# No `from __future__ import annotations`: Dagster compares the annotation of `context` as an object.

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version

import dagster as dg

from omop_schema.exports import ExportState
from pipeline.core.errors import TransientError, WarehouseError, WarehouseUnavailable
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import working_as
from pipeline.load.load import LoadOptions, load
from pipeline.load.resolving import NightResolution, resolve_and_remap, resolve_codes
from pipeline.orchestration.attempts import CONFIRM_TAG, EXPORT_TAG, postpone
from pipeline.orchestration.failures import passes_soon, raise_as_failures
from pipeline.orchestration.freshness import freshness_policy
from pipeline.orchestration.landing_run import DayLanding, RunScope, land, landed_jobs
from pipeline.orchestration.partitions import FIRST_DAY, is_day_without_exports, landed_jobs_of_day, site_partitions
from pipeline.orchestration.run_metadata import Metadata, landing_metadata, load_metadata, table_events
from pipeline.publication.publish import PublicationReport
from pipeline.quality.report import LoadReport, load_report
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors

__all__ = ["landing_key", "load_key", "pool_of", "site_assets"]

_MOST_UNMAPPED = 20

#: A load whose database restarts, or whose site another process works on, waits 30 s, then 60 s, with its pool.
RETRIES = dg.RetryPolicy(max_retries=2, delay=30, backoff=dg.Backoff.EXPONENTIAL)


def landing_key(site: SiteSettings) -> dg.AssetKey:
    return dg.AssetKey([site.name, "landing"])


def load_key(site: SiteSettings) -> dg.AssetKey:
    return dg.AssetKey([site.name, "load"])


def pool_of(site: SiteSettings) -> str:
    """One run a site at a time; `dagster.yaml` gives every pool a limit of 1."""
    return f"site:{site.name}"


def site_assets(site: SiteSettings, first_day: str = FIRST_DAY) -> list[dg.AssetsDefinition]:
    """The two assets of a site, from `first_day` on.

    A past day without exports is materialized as empty, so that a backfill over it is complete. Today without an export,
    and a day whose export failed, yield nothing; the run then ends as a success.
    """
    partitions = site_partitions(site, first_day)
    return [_landing(site, partitions), _load(site, partitions)]


def _landing(site: SiteSettings, partitions: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        key=landing_key(site),
        description=(
            f"NDJSON files of site {site.name} as Epic exported them on that day, verified and never changed: Group"
            " `$export` → `landing/<site>/<export id>/`. Materialized by the sensor when Epic has finished. By hand:"
            " today's partition opens or adopts the exports of all groups; a past day only looks at what was exported."
        ),
        metadata=_site_metadata(site),
        partitions_def=partitions,
        group_name=site.name,
        kinds={"fhir", "file"},
        tags={"epic_omop/site": site.name},
        code_version=version("epic-omop"),
        pool=pool_of(site),
        output_required=False,
    )
    def landing(
        context: dg.AssetExecutionContext, runtime: dg.ResourceParam[Runtime]
    ) -> Iterator[dg.MaterializeResult[None]]:
        scope = _scope(context)
        with raise_as_failures(), _new_attempt_later(runtime, scope):
            with working_as(context.job_name, context.run.run_id):
                result = land(runtime, site, scope, context.log.info)
            if result.landed or (scope.export_id is None and is_day_without_exports(runtime, site, scope.day)):
                with runtime.connect() as connection:
                    metadata = landing_metadata(connection, landed_jobs_of_day(connection, site, scope.day))
                yield dg.MaterializeResult(metadata=metadata)
            _log_cool_downs(context, site, scope, result)

    return landing


def _load(site: SiteSettings, partitions: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        key=load_key(site),
        deps=[landing_key(site)],
        description=(
            f"Lines of site {site.name} that were landed on that day → rows of the CDM: transformed, then published in"
            " one transaction an export. Unchanged lines are recognised and cost nothing. By hand (a backfill): what"
            " was published on that day is mapped again, as far as nothing newer has come since; Epic is not asked."
        ),
        partitions_def=partitions,
        group_name=site.name,
        kinds={"polars", "postgres"},
        tags={"epic_omop/site": site.name},
        code_version=version("epic-omop"),
        pool=pool_of(site),
        retry_policy=RETRIES,
        freshness_policy=freshness_policy(site),
        output_required=False,
    )
    def load(
        context: dg.AssetExecutionContext, runtime: dg.ResourceParam[Runtime]
    ) -> Iterator[dg.MaterializeResult[None]]:
        scope = _scope(context)
        with (
            raise_as_failures(),
            _new_attempt_later(runtime, scope, is_last_try=context.retry_number == RETRIES.max_retries),
        ):
            jobs = landed_jobs(runtime, site, scope)
            if not jobs:
                context.log.info("Nothing of site %s was landed on %s: nothing to load.", site.name, scope.day)
                if scope.export_id is None and is_day_without_exports(runtime, site, scope.day):
                    yield dg.MaterializeResult(metadata=_summarize_day(runtime, site, scope, [])[1])
                return
            with working_as(context.job_name, context.run.run_id):
                resolve_codes(runtime, site)
                published = [report for job in jobs for report in _load_export(context, runtime, site, scope, job)]
                _log_resolution(context, resolve_and_remap(runtime, site))
            report, metadata = _summarize_day(runtime, site, scope, published)
            for event in table_events(report, published, runtime.settings.cdm_schema):
                context.log_event(event)
            yield dg.MaterializeResult(metadata=metadata)

    return load


def _site_metadata(site: SiteSettings) -> dict[str, object]:
    return {
        "FHIR base URL": site.fhir_url or "none: loaded from folders (epic-omop ingest)",
        "groups": len(site.groups),
        "resource types": ", ".join(site.resource_types or ("all mapped types",)),
        "time zone": site.time_zone,
        "schedule": site.schedule,
    }


def _scope(context: dg.AssetExecutionContext) -> RunScope:
    tag = context.run.tags.get(EXPORT_TAG)
    confirmed = context.run.tags.get(CONFIRM_TAG) == "yes"
    return RunScope(context.partition_key, int(tag) if tag else None, confirmed)


@contextmanager
def _new_attempt_later(runtime: Runtime, scope: RunScope, *, is_last_try: bool = True) -> Iterator[None]:
    """A passing failure of a run that the sensor requested: it will request another, once this one tries no more."""
    try:
        with server_errors():
            yield
    except (TransientError, WarehouseUnavailable) as error:
        if scope.export_id is not None and (is_last_try or not passes_soon(error)):
            with suppress(WarehouseError):  # the database that is away cannot be told: the nightly kick-off tries again
                postpone(runtime, scope.export_id, error)
        raise


def _load_export(
    context: dg.AssetExecutionContext, runtime: Runtime, site: SiteSettings, scope: RunScope, job: ExportJob
) -> list[PublicationReport]:
    """What the ingest of this export published: itself, and replays that follow from it."""
    again = job.state == ExportState.PUBLISHED
    if again and scope.export_id is not None:
        context.log.info("Export %d is published already.", job.export_id)
        return []
    landed = runtime.landing.open(site.name, job.export_id)
    context.log.info("Export %d: %s %d lines.", job.export_id, "mapping again" if again else "loading", landed.lines)
    # A backfill maps again, and asks the site for nothing.
    options = LoadOptions(force=again, hydrate=not again, confirmed=scope.confirmed)
    result = load(runtime, site, landed, options)
    for hydration in result.hydrations:
        context.log.info("Hydration: %s", hydration.summary())
    for report in result.reports:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(report.outcomes.items()))
        context.log.info("Export %d is published: %s.", report.export_id, counts or "no lines")
        for warning in report.warnings:
            context.log.warning("Export %d: %s", report.export_id, warning)
    return result.reports


def _log_resolution(context: dg.AssetExecutionContext, found: NightResolution) -> None:
    """What the site's resolvers said about unknown codes; nothing where it has none."""
    for report in found.reports:
        context.log.info(
            "Resolver %s: %d codes resolved, %d unknown, %d without an answer.",
            *(report.resolver, report.exact - report.not_standard, report.unknown, report.unanswered),
        )
    for sentence in found.sentences():
        context.log.warning(sentence)
    if found.remapped is not None:
        context.log.info("%d resources were mapped again.", found.remapped.mapped.total())


def _summarize_day(
    runtime: Runtime, site: SiteSettings, scope: RunScope, published: list[PublicationReport]
) -> tuple[LoadReport, Metadata]:
    """Of all exports of the partition's day, and of what else this run published (replays)."""
    with runtime.connect() as connection:
        ids = {job.export_id for job in landed_jobs_of_day(connection, site, scope.day)}
        ids |= {report.export_id for report in published}
        settings = runtime.settings
        report = load_report(
            connection, settings.cdm_schema, settings.vocab_schema, sorted(ids), most_unmapped=_MOST_UNMAPPED
        )
        return report, load_metadata(connection, report)


def _log_cool_downs(context: dg.AssetExecutionContext, site: SiteSettings, scope: RunScope, result: DayLanding) -> None:
    for cool_down in result.cool_downs:
        context.log.info(cool_down.message)
    if result.cool_downs:
        times = [cool_down.next_try for cool_down in result.cool_downs if cool_down.next_try]
        metadata: Metadata = {"skipped groups": dg.MetadataValue.int(len(result.cool_downs))}
        if times:
            metadata["next try"] = dg.MetadataValue.timestamp(min(times))
        context.log_event(dg.AssetObservation(landing_key(site), metadata=metadata, partition=scope.day))
    elif not result.landed:
        context.log.info("Nothing of site %s was exported on %s.", site.name, scope.day)
