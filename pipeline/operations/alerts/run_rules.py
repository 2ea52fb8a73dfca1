"""Rules about runs and exports: what failed, what did not come, what stands still, what takes too long."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg

from omop_schema.exports import STATES_BEFORE_LANDING, ExportKind, ExportState, sql_values
from pipeline.core.settings import SiteSettings
from pipeline.operations.alerts.circumstances import Circumstances, DagsterState
from pipeline.operations.alerts.kinds import AlertKind, Condition
from pipeline.operations.alerts.nights import NIGHTLY_KINDS, GroupNight, group_nights, is_nightly, last_tick, was_tried
from pipeline.quality.bounds import usual
from pipeline.warehouse.next_kick_offs import next_kick_offs

__all__ = ["failed_runs", "missed_nights", "stuck_sites", "waiting_exports"]

_log = logging.getLogger(__name__)

#: What is landed and not published after this needs somebody: loads take minutes to a few hours.
_LOAD_WITHIN = timedelta(hours=6)
#: A site that does not answer for longer is not only restarted.
_ANSWER_WITHIN = timedelta(hours=2)
#: A refused kick-off is tried again by back-off: a few refusals are usual.
_REFUSALS = 3
#: An export without a past to compare it with.
_FIRST_EXPORTS = timedelta(hours=24)
#: Below this nothing is late.
_ALWAYS_PATIENT = timedelta(hours=1)

_FAILED = f"""
SELECT * FROM (
    SELECT DISTINCT ON (site, kind, group_id) export_id, site, kind, group_id, state, error FROM export_job
    WHERE kind IN {sql_values((*NIGHTLY_KINDS, ExportKind.HYDRATION))} ORDER BY site, kind, group_id, export_id DESC
) AS last WHERE state IN {sql_values((ExportState.FAILED, ExportState.GONE))} ORDER BY export_id
"""
# A run by hand that published what a failed run should have done needs no success of the same job in Dagster.
_FAILED_RUNS = f"""
SELECT failure.job_name, failure.site, failure.export_id, failure.partition, failure.error FROM run_failure AS failure
WHERE failure.resolved_at IS NULL AND failure.failed_at > %(since)s
  AND NOT EXISTS (SELECT FROM export_job AS job WHERE job.state = '{ExportState.PUBLISHED}'
                  AND (job.export_id = failure.export_id
                       OR (failure.export_id IS NULL AND failure.partition IS NULL AND job.site = failure.site
                           AND job.kind IN {sql_values(NIGHTLY_KINDS)} AND job.published_at > failure.failed_at)))
ORDER BY failure.failed_at
"""
#: A failed run that nobody repeated is not said for ever.
_FAILURES_DAYS = 14

_OPEN = f"""
SELECT export_id, site, kind, group_id, state, requested_at, next_poll_at, landed_at, failing_since, error FROM export_job
WHERE kind IN {sql_values(NIGHTLY_KINDS)}
  AND state IN {sql_values((*STATES_BEFORE_LANDING, ExportState.LANDED))} ORDER BY export_id
"""
_DURATIONS = f"""
SELECT extract(epoch FROM coalesce(complete_since, landed_at) - requested_at)::float FROM export_job
WHERE site = %s AND group_id IS NOT DISTINCT FROM %s AND kind IN {sql_values(NIGHTLY_KINDS)}
  AND coalesce(complete_since, landed_at) IS NOT NULL AND export_id < %s ORDER BY export_id DESC LIMIT %s
"""


@dataclass(frozen=True)
class _OpenExport:
    export_id: int
    site: str
    kind: str
    group_id: str | None
    state: str
    requested_at: datetime
    next_poll_at: datetime | None
    landed_at: datetime | None
    failing_since: datetime | None
    error: str | None

    @property
    def named(self) -> str:
        return f"Export {self.export_id}{_of(self.kind, self.group_id)}"


def failed_runs(connection: psycopg.Connection, at: Circumstances) -> Iterator[Condition]:
    """The last export of a group or crawl that failed, and runs of Dagster that did with nothing after them."""
    failed_exports = set()
    for export_id, site, kind, group, state, error in connection.execute(_FAILED).fetchall():
        known = at.settings.sites.get(site)
        if known is None or (kind == ExportKind.BULK and group not in known.groups):
            continue
        failed_exports.add(export_id)
        what = f"Export {export_id}{_of(kind, group)} is {state}: {_sentence(error)}"
        yield Condition(AlertKind.RUN_FAILED, site, what, f"{kind}:{group}")
    since = at.now - timedelta(days=_FAILURES_DAYS)
    for job, site, export_id, day, error in connection.execute(_FAILED_RUNS, {"since": since}).fetchall():
        if export_id in failed_exports or (site is not None and site not in at.settings.sites):
            continue
        about = f" for export {export_id}" if export_id else f" for {day}" if day else ""
        # What a person started for a day, or what no site owns, is run again where it was started.
        command = "" if site and (export_id or not day) else "epic-omop ui"
        what = f"Job {job} failed{about}: {_sentence(error)}"
        yield Condition(AlertKind.RUN_FAILED, site, what, f"{job}:{export_id or day or ''}", command)


def missed_nights(connection: psycopg.Connection, at: Circumstances) -> Iterator[Condition]:
    """Groups that were not published since their last night, by the site's own schedule and zone."""
    nights = list(_expected_nights(connection, at))
    missed = [night for night in nights if night.late]
    silent = {night.site.name for night in missed if not night.was_asked}
    dagster = _observed(at) if silent else None
    stopped = silent & dagster.stopped if dagster else set()
    if len(silent) == len(nights) and silent - stopped:
        yield _nothing_ran([night for night in missed if night.site.name not in stopped], dagster)
    else:
        silent = stopped
    for night in missed:
        if night.site.name in stopped:
            what = f"The schedule is off, and nothing was asked for since {_night(night.site, night.tick)}."
            yield Condition(AlertKind.SITE_STOPPED, night.site.name, what)
        elif night.site.name not in silent:
            yield _missed(night)


def _observed(at: Circumstances) -> DagsterState | None:
    """What Dagster says only adds to what is known: where its storage cannot be read, the alert is raised without it."""
    try:
        return at.dagster()
    except Exception as error:  # noqa: BLE001 - whatever Dagster raises
        _log.warning("Dagster's storage could not be read (%s).", type(error).__name__)
        return None


@dataclass(frozen=True)
class _SiteNight:
    """The last night of a site that should be published by now, and the groups that are not."""

    site: SiteSettings
    tick: datetime
    late: Sequence[GroupNight]
    #: Whether anything of it was tried.
    was_asked: bool


def _expected_nights(connection: psycopg.Connection, at: Circumstances) -> Iterator[_SiteNight]:
    for site in at.settings.sites.values():
        if not is_nightly(site):
            continue
        tick = last_tick(site, at.now - timedelta(hours=at.alerts.of_site(site.name).publication_within_hours or 0))
        groups = group_nights(connection, site)
        # A site that was never exported before its last night is being set up.
        if any(group.first_requested and group.first_requested < tick for group in groups):
            late = [group for group in groups if group.last_published is None or group.last_published < tick]
            was_asked = any(group.is_open or (group.last_requested and group.last_requested >= tick) for group in late)
            yield _SiteNight(site, tick, late, was_asked or was_tried(connection, site, tick))


def _nothing_ran(missed: Sequence[_SiteNight], dagster: DagsterState | None) -> Condition:
    first = min(night.tick for night in missed)
    names = ", ".join(sorted(night.site.name for night in missed))
    daemon = {None: "", True: " Dagster's daemon is alive.", False: " Dagster's daemon does not run."}
    what = f"No site asked for anything since {_utc(first)}: {names}.{daemon[dagster.daemon if dagster else None]}"
    return Condition(AlertKind.NOTHING_RAN, None, what)


def _missed(night: _SiteNight) -> Condition:
    late = [f"{group.group} ({_last(night.site, group)})" for group in night.late]
    groups = ", ".join(late[:5]) + (f" and {len(late) - 5} more" if len(late) > 5 else "")
    asked = "" if night.was_asked else " Nothing was asked for."
    what = f"Nothing is published of the night of {_night(night.site, night.tick)}: {groups}.{asked}"
    return Condition(AlertKind.NO_PUBLICATION, night.site.name, what)


def _last(site: SiteSettings, night: GroupNight) -> str:
    return f"last {_night(site, night.last_published)}" if night.last_published else "never published"


def stuck_sites(connection: psycopg.Connection, at: Circumstances) -> Iterator[Condition]:
    """Open exports that nobody asks for, that cannot be asked for, or are landed and not loaded; refused kick-offs."""
    for export in _open_exports(connection, at):
        why = _why_stuck(export, at)
        if why:
            yield Condition(AlertKind.SITE_STUCK, export.site, f"{export.named} {why}", export.group_id or "")
    for site in at.settings.sites.values():
        for entry in next_kick_offs(connection, site):
            if entry.attempt >= _REFUSALS:
                what = f"The kick-off of {entry.group_id} was refused {entry.attempt} times: {_sentence(entry.reason)}"
                yield Condition(AlertKind.SITE_STUCK, site.name, what, f"kick-off:{entry.group_id}")


def _why_stuck(export: _OpenExport, at: Circumstances) -> str:
    site = at.settings.sites[export.site]
    if export.state == ExportState.LANDED:
        if export.landed_at and at.now - export.landed_at > _LOAD_WITHIN:
            return f"is landed since {_utc(export.landed_at)} and not loaded."
        return ""
    if export.failing_since and at.now - export.failing_since > _ANSWER_WITHIN:
        return f"could not be asked for since {_utc(export.failing_since)}: {_sentence(export.error)}"
    patience = max(_ANSWER_WITHIN, timedelta(seconds=2 * site.poll_ceiling_seconds))
    if export.next_poll_at and at.now - export.next_poll_at > patience:
        return f"should have been asked for at {_utc(export.next_poll_at)}, and nobody did: the sensor is off or down."
    return ""


def waiting_exports(connection: psycopg.Connection, at: Circumstances) -> Iterator[Condition]:
    """Exports that the site works on for longer than on the group's last nights."""
    for export in _open_exports(connection, at):
        if export.state == ExportState.LANDED:
            continue
        bound, by = _patience(connection, at, export)
        waited = at.now - export.requested_at
        if waited > bound:
            what = f"{export.named} is {export.state} for {_hours(waited)}, {by} {_hours(bound)}."
            yield Condition(AlertKind.EXPORT_WAITING, export.site, what, export.group_id or "")


def _patience(connection: psycopg.Connection, at: Circumstances, export: _OpenExport) -> tuple[timedelta, str]:
    """How long the export may take, and by what."""
    alerts = at.alerts
    if hours := alerts.of_site(export.site).export_within_hours:
        return timedelta(hours=hours), "more than export_within_hours:"
    rows = connection.execute(
        _DURATIONS, (export.site, export.group_id, export.export_id, alerts.history_nights)
    ).fetchall()
    if len(rows) < alerts.history_least_nights:
        return _FIRST_EXPORTS, "more than"
    seconds = usual([row[0] for row in rows])
    highest = timedelta(seconds=seconds.highest(alerts.jump_deviations, seconds.median / 2))
    return max(highest, _ALWAYS_PATIENT), f"more than usual (the last {len(rows)} nights): at most"


def _open_exports(connection: psycopg.Connection, at: Circumstances) -> list[_OpenExport]:
    rows = [_OpenExport(*row) for row in connection.execute(_OPEN).fetchall()]
    return [export for export in rows if export.site in at.settings.sites]


def _of(kind: str, group: str | None) -> str:
    """Of a crawl not by its label, which may be made of what was asked for."""
    return f" of group {group}" if kind == ExportKind.BULK else f" ({kind})"


def _sentence(error: str | None) -> str:
    text = " ".join((error or "no reason is known").split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _night(site: SiteSettings, at: datetime) -> str:
    return f"{at.astimezone(site.zone):%Y-%m-%d %H:%M} {site.time_zone}"


def _utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:.1f} h"
