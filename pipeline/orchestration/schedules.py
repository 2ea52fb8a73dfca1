"""Schedules: one a site, by the site's own cron and in its own zone. They only kick off; the sensor does the rest."""

from __future__ import annotations

import dagster as dg

from pipeline.orchestration.partitions import day_of
from pipeline.settings import SiteSettings

__all__ = ["nightly_schedule"]


def nightly_schedule(site: SiteSettings, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """On from the first day for a real site; off for a simulated one, which is not always there."""

    @dg.schedule(
        name=f"{site.name}__nightly",
        description=f"Run {job.name}, by the `schedule` of site {site.name} in sites.yaml.",
        cron_schedule=site.schedule,
        execution_timezone=site.time_zone,
        job=job,
        default_status=dg.DefaultScheduleStatus.STOPPED if site.test_mode else dg.DefaultScheduleStatus.RUNNING,
    )
    def nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        at = context.scheduled_execution_time
        return dg.RunRequest(run_key=at.isoformat(), tags={"epic_omop/day": day_of(site, at)})

    return nightly
