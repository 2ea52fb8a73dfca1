"""Partitions: one a day, the day of the kick-off in the site's own zone. A day may hold several exports."""

from __future__ import annotations

from datetime import datetime, timedelta

import dagster as dg
import psycopg

from pipeline.settings import SiteSettings
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob

__all__ = ["FIRST_DAY", "day_of", "jobs_of_day", "landed_jobs_of_day", "site_partitions"]

#: Before the first export of any instance. Changing it moves nothing: partitions are named by their day.
FIRST_DAY = "2026-01-01"

#: `replay` exports follow from others and are not mapped again by themselves.
_KINDS = ("bulk", "folder", "crawl", "hydration")


def site_partitions(site: SiteSettings) -> dg.DailyPartitionsDefinition:
    """The days from FIRST_DAY to today, today included."""
    return dg.DailyPartitionsDefinition(start_date=FIRST_DAY, timezone=site.time_zone, end_offset=1)


def day_of(site: SiteSettings, instant: datetime) -> str:
    """The partition key of an instant: its date in the site's zone, YYYY-MM-DD."""
    return instant.astimezone(site.zone).date().isoformat()


def jobs_of_day(connection: psycopg.Connection, site: SiteSettings, day: str) -> list[ExportJob]:
    """The exports (all but replays) that were requested on that day in the site's zone, oldest first."""
    start = datetime.fromisoformat(day).replace(tzinfo=site.zone)
    end = start + timedelta(days=1)  # wall-clock arithmetic: the next midnight, also when the clocks change
    rows = connection.execute(
        "SELECT export_id FROM export_job WHERE site = %s AND kind = ANY(%s)"
        " AND requested_at >= %s AND requested_at < %s ORDER BY export_id",
        [site.name, list(_KINDS), start, end],
    ).fetchall()
    return [export_jobs.get_job(connection, row[0]) for row in rows]


def landed_jobs_of_day(connection: psycopg.Connection, site: SiteSettings, day: str) -> list[ExportJob]:
    """Those of them whose files are here."""
    return [job for job in jobs_of_day(connection, site, day) if job.state in ("landed", "published")]
