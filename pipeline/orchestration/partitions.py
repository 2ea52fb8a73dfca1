"""Partitions: one a day, the day of the kick-off in the site's own zone. A day may hold several exports."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg

from omop_schema.exports import STATES_WITH_FILES, ExportKind, ExportState
from pipeline.core.errors import EpicOmopError
from pipeline.core.files import replace_file
from pipeline.core.settings import Settings, SiteSettings
from pipeline.warehouse import export_jobs
from pipeline.warehouse.embedded.server import EmbeddedServer
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = [
    "FIRST_DAY",
    "day_of",
    "first_days",
    "is_day_without_exports",
    "jobs_of_day",
    "landed_jobs_of_day",
    "site_partitions",
]

#: Where nothing is known of a site: before the first export of any instance.
FIRST_DAY = "2026-01-01"

#: `replay` exports follow from others and are not mapped again by themselves.
_KINDS = (ExportKind.BULK, ExportKind.FOLDER, ExportKind.CRAWL, ExportKind.HYDRATION)


def site_partitions(site: SiteSettings, first_day: str = FIRST_DAY) -> dg.DailyPartitionsDefinition:
    """The days from `first_day` (`first_days` of the site) to today, today included. They are named by their day: another
    first day moves nothing."""
    return dg.DailyPartitionsDefinition(start_date=first_day, timezone=site.time_zone, end_offset=1)


def first_days(settings: Settings, runtime: Runtime | None = None) -> dict[str, str]:
    """Site → the day of its first export; before that its `go_live_date` if that is past, else today. A day that was once
    there stays: every process loads the definitions by itself, and a run of a day that the UI has offered must find it.

    Read when the definitions are loaded, in one query, and only from a server that runs: loading starts none. Where it does
    not answer, what was last read holds; where that is nothing, FIRST_DAY, so that every day that has ever been is there.
    `runtime`: its connections and clock.
    """
    runtime = runtime or Runtime(settings)
    exported = _first_exports(runtime)
    file = settings.home / "dagster" / "first_days.json"
    if exported is None:
        return dict.fromkeys(settings.sites, FIRST_DAY) | _last_read(file)
    kept, days = _last_read(file), {}
    for name, site in settings.sites.items():
        today = day_of(site, runtime.clock.now())
        live = site.go_live_date.isoformat() if site.go_live_date else today
        first = day_of(site, exported[name]) if name in exported else min(live, today)
        days[name] = min(first, kept.get(name, first))
    if file.parent.exists() and days != kept:
        replace_file(file, json.dumps(days).encode(), is_durable=False)
    return days


def _last_read(file: Path) -> dict[str, str]:
    try:
        days = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(day) for name, day in days.items()} if isinstance(days, dict) else {}


def _first_exports(runtime: Runtime) -> dict[str, datetime] | None:
    """Site → when its first export was asked for; None where the warehouse does not answer."""
    settings = runtime.settings
    try:
        if settings.database_url is None and EmbeddedServer(settings.home).url_if_running() is None:
            return {} if not (settings.home / "landing").exists() else None
        with runtime.connect() as connection:
            table = connection.execute("SELECT to_regclass(%s)", (f"{settings.etl_schema}.export_job",)).fetchone()
            if table is None or table[0] is None:
                return {}
            rows = connection.execute(
                "SELECT site, min(requested_at) FROM export_job WHERE kind = ANY(%s) GROUP BY site", (list(_KINDS),)
            ).fetchall()
            return dict(rows)
    except EpicOmopError:
        return None


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
    return [job for job in jobs_of_day(connection, site, day) if job.state in STATES_WITH_FILES]


def is_day_without_exports(runtime: Runtime, site: SiteSettings, day: str) -> bool:
    """Whether a past day has nothing that could be landed yet: no export, or only such as the site's window forbade."""
    if day >= day_of(site, runtime.clock.now()):
        return False
    with runtime.connect() as connection:
        return all(job.state == ExportState.SKIPPED for job in jobs_of_day(connection, site, day))
