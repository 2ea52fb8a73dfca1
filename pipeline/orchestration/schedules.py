"""Schedules: one a site, by the site's own cron and in its own zone. They only kick off; the sensor does the rest."""

from __future__ import annotations

import dagster as dg

from pipeline.core.settings import SiteSettings
from pipeline.orchestration.partitions import day_of
from pipeline.orchestration.switches import schedule_name

__all__ = ["nightly_schedule"]


def nightly_schedule(site: SiteSettings, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Off until a person switches it on (`epic-omop site enable`, or the UI): a look around at one in the morning must not
    spend a hospital's window."""

    @dg.schedule(
        name=schedule_name(site),
        description=f"Run {job.name}, by the `schedule` of site {site.name} in sites.yaml.",
        cron_schedule=site.schedule,
        execution_timezone=site.time_zone,
        job=job,
        default_status=dg.DefaultScheduleStatus.STOPPED,
    )
    def nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        at = context.scheduled_execution_time
        return dg.RunRequest(run_key=at.isoformat(), tags={"epic_omop/day": day_of(site, at)})

    return nightly
