"""`etl.run_failure`: runs of Dagster that failed, so that the rules stay a function over `etl`.

Functions on a connection whose search_path begins with the `etl` schema. They do not commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from pipeline.operations.alerts.messages import cut

__all__ = ["RunFailure", "RunSubject", "keep_run_failure", "known_failures", "resolve_run_failures"]


@dataclass(frozen=True)
class RunSubject:
    """What a run was about: site (None: the instance), export and day (partition), where it had them. A later run of the
    same makes a failed one good."""

    job_name: str
    site: str | None
    export_id: int | None
    partition: str | None


@dataclass(frozen=True)
class RunFailure:
    """A failed run. `error`: our own words of what went wrong; of other errors the class."""

    run_id: str
    subject: RunSubject
    failed_at: datetime
    error: str


def keep_run_failure(connection: psycopg.Connection, failure: RunFailure) -> None:
    """Repeating it changes nothing."""
    subject = failure.subject
    connection.execute(
        "INSERT INTO run_failure (run_id, job_name, site, export_id, partition, failed_at, error)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (
            *(failure.run_id, subject.job_name, subject.site, subject.export_id, subject.partition),
            *(failure.failed_at, cut(failure.error)),
        ),
    )


def resolve_run_failures(connection: psycopg.Connection, subject: RunSubject, succeeded_at: datetime) -> None:
    """A run of the same subject succeeded: failures before it are over."""
    connection.execute(
        "UPDATE run_failure SET resolved_at = %s WHERE resolved_at IS NULL AND job_name = %s AND failed_at <= %s"
        " AND (site, export_id, partition) IS NOT DISTINCT FROM (%s, %s, %s)",
        (succeeded_at, subject.job_name, succeeded_at, subject.site, subject.export_id, subject.partition),
    )


def known_failures(connection: psycopg.Connection, run_ids: Sequence[str]) -> dict[str, bool]:
    """Those of the runs that are kept already → whether they are over."""
    rows = connection.execute(
        "SELECT run_id, resolved_at IS NOT NULL FROM run_failure WHERE run_id = ANY(%s)", (list(run_ids),)
    ).fetchall()
    return dict(rows)
