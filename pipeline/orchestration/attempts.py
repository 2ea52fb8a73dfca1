"""Attempts of an ingest: the run key `<export id>:<attempt>` is used once, so a further run needs a further attempt.

The daemon never repeats a run key, failed runs included. An attempt is given here, in two cases alone: the last one
failed for a passing reason, or the nightly kick-off finds an export that waits with no run under way. What waits for
a person (a mapping, a full disk) is so tried once a night, and never in a loop.
"""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from omop_schema.exports import ExportState
from pipeline.core.errors import EpicOmopError
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = [
    "CONFIRM_TAG",
    "EXPORT_TAG",
    "UNFINISHED",
    "WAITING",
    "give_new_attempt",
    "is_under_way",
    "postpone",
    "run_key",
]

#: Tag of an ingest run: the export that it was requested for. A run without it was started by a person, for a day.
EXPORT_TAG = "epic_omop/export"
#: Set to `yes` on a run by hand: what has vanished is deleted by the site's policy, however much it is.
CONFIRM_TAG = "epic_omop/confirm"

#: States in which an export waits for an ingest run.
WAITING = (ExportState.COMPLETE, ExportState.LANDED)

_FIRST_WAIT = timedelta(minutes=10)
_LONGEST_WAIT = timedelta(hours=6)

UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def run_key(job: ExportJob) -> str:
    return f"{job.export_id}:{job.attempt}"


def is_under_way(instance: dg.DagsterInstance, export_id: int) -> bool:
    """Whether a run for this export waits in the queue or works."""
    runs = dg.RunsFilter(tags={EXPORT_TAG: str(export_id)}, statuses=UNFINISHED)
    return bool(instance.get_run_records(runs, limit=1))


def postpone(runtime: Runtime, export_id: int, error: EpicOmopError) -> None:
    """After a passing failure: a new attempt, at the time that the error names, else in 10 min, 20 min … 6 h."""
    with runtime.connect() as connection:
        row = connection.execute(
            "SELECT attempt FROM export_job WHERE export_id = %s AND state = ANY(%s) FOR UPDATE",
            [export_id, list(WAITING)],
        ).fetchone()
        if row is None:
            return
        wait = min(_FIRST_WAIT * 2 ** min(row[0] - 1, 10), _LONGEST_WAIT)
        next_try = getattr(error, "next_try", None) or runtime.clock.now() + wait
        connection.execute(
            "UPDATE export_job SET attempt = attempt + 1, next_poll_at = %s WHERE export_id = %s",
            [next_try, export_id],
        )


def give_new_attempt(runtime: Runtime, export_id: int) -> None:
    """The nightly second chance of an export that waits; due at once."""
    with runtime.connect() as connection:
        connection.execute(
            "UPDATE export_job SET attempt = attempt + 1, next_poll_at = NULL WHERE export_id = %s AND state = ANY(%s)",
            [export_id, list(WAITING)],
        )
