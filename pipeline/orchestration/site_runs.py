"""What Dagster's own storage says of each site: its switches, the run that ended last, what is under way, the next run.

Read without a code server and without loading definitions, for `epic-omop status`; what a site's exports do is in `etl`.
"""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
from cronsim import CronSim

from pipeline.core.settings import Settings, SiteSettings
from pipeline.operations.alerts.nights import is_nightly
from pipeline.operations.site_status import DagsterRuns, SiteRun, SiteRuns
from pipeline.orchestration.attempts import UNFINISHED
from pipeline.orchestration.switches import open_instance, read_switches

__all__ = ["read_runs"]

_SITE_TAG = "epic_omop/site"
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
#: Of a site; more of them say nothing more.
_MOST_UNFINISHED = 20


def read_runs(settings: Settings, now: datetime) -> DagsterRuns:
    """Of all sites that have something that runs by itself."""
    nightly = filter(is_nightly, settings.sites.values())
    daemon = False
    found = {}
    with open_instance(settings) as instance:
        for site in nightly:
            switches = read_switches(instance, site)
            daemon = switches.daemon
            last = _runs(instance, site, _ENDED, 1)
            found[site.name] = SiteRuns(
                switches.schedule,
                switches.sensor or not site.groups,
                switches.daemon,
                next(CronSim(site.schedule, now.astimezone(site.zone))) if switches.schedule else None,
                last[0] if last else None,
                tuple(_runs(instance, site, UNFINISHED, _MOST_UNFINISHED)),
            )
    return DagsterRuns(daemon, found)


def _runs(
    instance: dg.DagsterInstance, site: SiteSettings, statuses: list[dg.DagsterRunStatus], most: int
) -> list[SiteRun]:
    """The newest first."""
    records = instance.get_run_records(dg.RunsFilter(tags={_SITE_TAG: site.name}, statuses=statuses), limit=most)
    return [
        SiteRun(
            record.dagster_run.run_id,
            record.dagster_run.job_name,
            record.dagster_run.status.value,
            record.create_timestamp,
            datetime.fromtimestamp(record.end_time, UTC) if record.end_time else None,
        )
        for record in records
    ]
