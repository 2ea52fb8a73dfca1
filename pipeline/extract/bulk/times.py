"""The time of an export, which orders it among the others: the site's transactionTime, where that can be right.

An older export never overwrites a newer one, so a time in the future would keep out everything that comes after it, one
of a clock that was reset would be kept out by everything before it, and one that cannot be read says nothing. Then the
time of the kick-off counts, by our own clock: whatever the export holds is at least as new. Every such choice is a note of
the export, which the report and `status` show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg

from omop_schema.exports import ExportKind
from pipeline.warehouse.export_jobs import ExportJob

__all__ = ["EARLIEST", "MOST_AHEAD", "ExportTime", "KeepFutureTime", "export_time"]

#: Clocks of servers differ; more than this is no difference of clocks that are looked after.
MOST_AHEAD = timedelta(minutes=10)

#: No server spoke FHIR before. An export of a snapshot may be days old, but not that old: such a clock was reset.
EARLIEST = datetime(2011, 1, 1, tzinfo=UTC)

#: (the site's time, our time) → whether the site's counts all the same. Asks a person.
KeepFutureTime = Callable[[datetime, datetime], bool]


@dataclass(frozen=True)
class ExportTime:
    """The instant that orders an export, and why it is not what the site says, a sentence each."""

    instant: datetime
    notes: Sequence[str] = ()


def export_time(
    connection: psycopg.Connection,
    job: ExportJob,
    stated: datetime | None,
    now: datetime,
    keep_future_time: KeepFutureTime | None = None,
) -> ExportTime:
    """The time of a job whose manifest states `stated` (None: nothing that can be read)."""
    own = f"the time of the kick-off, {job.requested_at:%Y-%m-%d %H:%M} UTC, counts instead"
    if stated is None:
        return ExportTime(job.requested_at, (f"The site's transactionTime cannot be read: {own}.",))
    if stated < EARLIEST:
        note = f"The site's transactionTime, {stated.date()}, is before there was FHIR"
        return ExportTime(job.requested_at, (f"{note}: {own}.",))
    if stated - now > MOST_AHEAD:
        note = f"The site's transactionTime, {stated:%Y-%m-%d %H:%M} UTC, was ahead of this machine's clock"
        if keep_future_time and keep_future_time(stated, now):
            return ExportTime(stated, (f"{note}; it counts, as was confirmed.",))
        return ExportTime(job.requested_at, (f"{note}: {own}.",))
    newer = _newer_export(connection, job, stated)
    if newer is None:
        return ExportTime(stated)
    number, when = newer
    note = (
        f"Its time, {stated:%Y-%m-%d %H:%M} UTC, is before that of export {number}, {when:%Y-%m-%d %H:%M} UTC, which was"
        " requested earlier: what that one contained is not overwritten. If its time is wrong:"
        f" epic-omop export retime --site {job.site} --export {number}."
    )
    return ExportTime(stated, (note,))


def _newer_export(connection: psycopg.Connection, job: ExportJob, stated: datetime) -> tuple[int, datetime] | None:
    """The export with the latest time of those that were requested before this one and have a later time."""
    return connection.execute(
        "SELECT export_id, transaction_time FROM export_job WHERE site = %s AND export_id <> %s AND published_at IS NOT NULL"
        f" AND kind <> '{ExportKind.REPLAY}' AND requested_at < %s AND transaction_time > %s"
        " ORDER BY transaction_time DESC LIMIT 1",
        [job.site, job.export_id, job.requested_at, stated],
    ).fetchone()
