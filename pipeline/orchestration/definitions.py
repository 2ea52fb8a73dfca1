"""The only place where Dagster's parts are put together. What each part does is in `pipeline/orchestration/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from pipeline.core.logs import configure_logging
from pipeline.core.private_files import work_privately
from pipeline.core.settings import Settings, home_folder, load_log_settings, load_settings
from pipeline.orchestration.asset_checks import accounting_check
from pipeline.orchestration.crawl_job import crawl_job
from pipeline.orchestration.deep_check import deep_parts
from pipeline.orchestration.jobs import ingest_job, kick_off_job
from pipeline.orchestration.lakehouse import lakehouse_parts
from pipeline.orchestration.landing_job import prune_job
from pipeline.orchestration.partitions import first_days
from pipeline.orchestration.resources import site_resources
from pipeline.orchestration.schedules import nightly_schedule
from pipeline.orchestration.sensors import export_sensor
from pipeline.orchestration.site_assets import load_key, site_assets
from pipeline.orchestration.warehouse_assets import warehouse_assets

__all__ = ["build_definitions", "defs"]


def build_definitions(settings: Settings | None = None, overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Everything of every site in the settings (default: those of the environment).

    `overrides` replaces resources by name, such as `{"runtime": Runtime(settings, clock)}`.
    Raises ConfigurationError when the environment or sites.yaml is wrong.
    """
    settings = settings or load_settings()
    sites = [settings.sites[name] for name in sorted(settings.sites)]
    with_epic = [site for site in sites if site.fhir_url and site.groups]
    kick_offs = {site.name: kick_off_job(site) for site in with_epic}
    crawls = {site.name: crawl_job(site) for site in sites if site.fhir_url and site.patients_file}
    # The night's job: the exports of the groups; where there is none, the crawl.
    nightly = {**crawls, **kick_offs}
    ingests = {site.name: ingest_job(site) for site in sites}
    days = first_days(settings, (overrides or {}).get("runtime"))
    lakehouse = lakehouse_parts(settings) if settings.lakehouse else None
    deep = deep_parts(settings, sites) if sites else None
    return dg.Definitions(
        assets=[
            *(asset for site in sites for asset in site_assets(site, days[site.name])),
            *warehouse_assets(settings, [load_key(site) for site in sites]),
            *([lakehouse.asset] if lakehouse else []),
        ],
        asset_checks=[*(accounting_check(site) for site in sites), *(deep.checks if deep else [])],
        jobs=[
            *kick_offs.values(),
            *crawls.values(),
            *ingests.values(),
            *(prune_job(site) for site in sites),
            *([deep.job] if deep else []),
            *([lakehouse.job] if lakehouse else []),
        ],
        schedules=[
            *(nightly_schedule(site, nightly[site.name]) for site in sites if site.name in nightly),
            *([deep.schedule] if deep else []),
            *([lakehouse.schedule] if lakehouse else []),
        ],
        sensors=[export_sensor(site, ingests[site.name], kick_offs[site.name]) for site in with_epic],
        resources=site_resources(settings, overrides or {}),
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads; read from the environment when it is loaded, not when this module is imported."""
    work_privately(home_folder())
    configure_logging(load_log_settings())
    return build_definitions()
