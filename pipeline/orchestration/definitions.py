"""The only place where Dagster's parts are put together. What each part does is in `pipeline/orchestration/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from pipeline.core.logs import configure_logging
from pipeline.core.private_files import work_privately
from pipeline.core.settings import Settings, SiteSettings, home_folder, load_log_settings, load_settings
from pipeline.orchestration.alert_sensors import alert_sensors
from pipeline.orchestration.asset_checks import accounting_check, coverage_check
from pipeline.orchestration.crawl_job import crawl_job
from pipeline.orchestration.deep_check import deep_parts
from pipeline.orchestration.jobs import ingest_job, kick_off_job
from pipeline.orchestration.lakehouse import lakehouse_parts
from pipeline.orchestration.landing_job import prune_job
from pipeline.orchestration.partitions import first_days
from pipeline.orchestration.replay_job import replay_job
from pipeline.orchestration.resources import site_resources
from pipeline.orchestration.retention_job import retention_parts
from pipeline.orchestration.schedules import nightly_schedule
from pipeline.orchestration.sensors import export_sensor
from pipeline.orchestration.site_assets import load_key, site_assets
from pipeline.orchestration.table_checks import table_checks
from pipeline.orchestration.warehouse_assets import warehouse_assets

__all__ = ["build_definitions", "defs"]


def build_definitions(settings: Settings | None = None, overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Everything of every site in the settings (default: those of the environment).

    `overrides` replaces resources by name, such as `{"runtime": Runtime(settings, clock)}`.
    Raises ConfigurationError when the environment or sites.yaml is wrong.
    """
    settings, overrides = settings or load_settings(), overrides or {}
    sites = [settings.sites[name] for name in sorted(settings.sites)]
    days = first_days(settings, overrides.get("runtime"))
    return dg.Definitions.merge(
        *(_of_site(site, days[site.name]) for site in sites),
        _of_warehouse(settings, sites),
        dg.Definitions(resources=site_resources(settings, overrides), executor=dg.in_process_executor),
    )


def _of_site(site: SiteSettings, first_day: str) -> dg.Definitions:
    ingest = ingest_job(site)
    kick_off = kick_off_job(site) if site.fhir_url and site.groups else None
    crawl = crawl_job(site) if site.fhir_url and site.patients_file else None
    # The night's job: the exports of the groups; where there is none, the crawl.
    nightly = kick_off or crawl
    return dg.Definitions(
        assets=site_assets(site, first_day),
        asset_checks=[accounting_check(site), coverage_check(site)],
        jobs=[ingest, prune_job(site), *(job for job in (kick_off, crawl) if job)],
        schedules=[nightly_schedule(site, nightly)] if nightly else [],
        sensors=[export_sensor(site, ingest, kick_off)] if kick_off else [],
    )


def _of_warehouse(settings: Settings, sites: Sequence[SiteSettings]) -> dg.Definitions:
    """What all sites share."""
    deep = deep_parts(settings, sites) if sites else None
    tables = table_checks(settings, sites) if sites else None
    blocking = tables.blocking if tables else None
    lakehouse = lakehouse_parts(settings, blocking) if settings.lakehouse else None
    retention = retention_parts(settings) if sites else None
    return dg.Definitions(
        assets=[
            *warehouse_assets(settings, [load_key(site) for site in sites]),
            *([lakehouse.asset] if lakehouse else []),
        ],
        asset_checks=[*([tables.checks] if tables else []), *(deep.checks if deep else [])],
        jobs=[
            *(part.job for part in (deep, lakehouse, retention, tables) if part),
            *([replay_job(settings.sites)] if sites else []),
        ],
        schedules=[part.schedule for part in (deep, lakehouse, retention, tables) if part],
        sensors=alert_sensors(settings) if sites else [],
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads; read from the environment when it is loaded, not when this module is imported."""
    work_privately(home_folder())
    configure_logging(load_log_settings())
    return build_definitions()
