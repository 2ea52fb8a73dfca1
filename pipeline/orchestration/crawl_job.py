"""Job `<site>__crawl`: the patients of the site's `patients_file`, by REST search, landed and loaded.

Made for sites that name such a file. A run that failed, or whose process died, is continued by the next one: what is
recorded of a crawl is in `etl.crawl_search`. Metadata are counts; the list and its ids never appear.
"""

# No `from __future__ import annotations`: Dagster compares the annotation of `context` as an object.

import dagster as dg

from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import SiteSettings
from pipeline.extract.rest.crawl import Crawl, crawl, left_crawls
from pipeline.extract.rest.patient_list import read_patients
from pipeline.landing.store import LandedExport
from pipeline.load.load import LoadOptions, load
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.partitions import day_of, landed_jobs_of_day
from pipeline.orchestration.run_metadata import Metadata, landing_metadata, load_metadata, table_events, table_value
from pipeline.orchestration.site_assets import landing_key, load_key, pool_of
from pipeline.quality.report import load_report
from pipeline.warehouse import export_jobs
from pipeline.warehouse.runtime import Runtime

__all__ = ["crawl_job", "crawl_job_name"]


def crawl_job_name(site: SiteSettings) -> str:
    return f"{site.name}__crawl"


def crawl_job(site: SiteSettings) -> dg.JobDefinition:
    """One op: crawl, land, load. It has no partition: what it lands belongs to the day on which the crawl began."""

    @dg.op(
        name=f"{site.name}__crawl_patients",
        description="Search for all types of all listed patients, land what is found, and load it. Resumes a crawl"
        " that was interrupted.",
        tags={"epic_omop/site": site.name},
        pool=pool_of(site),
        out=dg.Out(dg.Nothing),
    )
    def crawl_op(context: dg.OpExecutionContext, runtime: dg.ResourceParam[Runtime]) -> None:
        with raise_as_failures():
            patients = _patients(site)
            for left in left_crawls(runtime, site, patients):
                context.log.info("Crawl %d was landed and not loaded: it is loaded now.", left.export_id)
                _load(context, runtime, site, left)
            result = crawl(runtime, site, patients)
            context.log.info("Crawl %d: %d resources are landed.", result.export.export_id, result.export.lines)
            _log_landed(context, runtime, site, result)
            _load(context, runtime, site, result.export)

    @dg.job(
        name=crawl_job_name(site),
        description=f"Crawl the patients of site {site.name}'s patients_file by REST search, land and load them.",
        tags={"epic_omop/site": site.name},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        crawl_op()

    return job


def _patients(site: SiteSettings) -> list[str]:
    if site.patients_file is None:
        raise ConfigurationError(f"Site {site.name} has no patients_file.", "Name one in sites.yaml.")
    return read_patients(site.patients_file)


def _log_landed(context: dg.OpExecutionContext, runtime: Runtime, site: SiteSettings, result: Crawl) -> None:
    with runtime.connect() as connection:
        requested_at = export_jobs.get_job(connection, result.export.export_id).requested_at
        day = day_of(site, requested_at)
        metadata: Metadata = {
            **landing_metadata(connection, landed_jobs_of_day(connection, site, day)),
            "patients": dg.MetadataValue.int(result.patients),
            "patients not there": dg.MetadataValue.int(result.missing_patients),
        }
    if result.refused:
        rows = [(name, code, count) for (name, code), count in sorted(result.refused.items())]
        metadata["refused searches"] = table_value(("resource type", "the server answered", "patients"), rows)
    context.log_event(dg.AssetMaterialization(landing_key(site), metadata=metadata, partition=day))


def _load(context: dg.OpExecutionContext, runtime: Runtime, site: SiteSettings, export: LandedExport) -> None:
    result = load(runtime, site, export, LoadOptions(hydrate=True))
    for hydration in result.hydrations:
        context.log.info("Hydration: %s", hydration.summary())
    with runtime.connect() as connection:
        day = day_of(site, export_jobs.get_job(connection, export.export_id).requested_at)
        ids = {job.export_id for job in landed_jobs_of_day(connection, site, day)}
        ids |= {report.export_id for report in result.reports}
        report = load_report(connection, runtime.settings.cdm_schema, runtime.settings.vocab_schema, sorted(ids))
        metadata = load_metadata(connection, report)
    for event in table_events(report, result.reports, runtime.settings.cdm_schema):
        context.log_event(event)
    context.log_event(dg.AssetMaterialization(load_key(site), metadata=metadata, partition=day))
