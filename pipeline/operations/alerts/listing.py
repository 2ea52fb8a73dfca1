"""What is wrong at present, with since when it is, for people who look: nothing is sent and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg

from pipeline.operations.alerts.circumstances import ObserveDagster, nothing_known
from pipeline.operations.alerts.messages import Problem, problem_of
from pipeline.operations.alerts.rules import current_conditions
from pipeline.warehouse.runtime import Runtime

__all__ = ["ListedAlert", "list_alerts"]


@dataclass(frozen=True)
class ListedAlert:
    """`since`: when a run of the alerts saw it first; None: none has yet. `until`: of what is over."""

    site: str | None
    problem: Problem
    since: datetime | None
    until: datetime | None


def list_alerts(
    connection: psycopg.Connection,
    runtime: Runtime,
    *,
    site: str | None = None,
    history_days: int = 0,
    dagster: ObserveDagster = nothing_known,
) -> list[ListedAlert]:
    """What the rules find now, worst first, and then what ended in the last so many days, newest first.

    Raises ConfigurationError where operations.yaml is wrong. `connection` has the etl schema on its search_path.
    """
    seen = connection.execute("SELECT key, opened_at FROM alert WHERE resolved_at IS NULL").fetchall()
    since: dict[str, datetime] = dict(seen)
    now = runtime.clock.now()
    listed = []
    for one in current_conditions(connection, runtime, dagster):
        if site in (None, one.site):
            opened_at = since.get(one.key)
            problem = problem_of(one.kind, one.severity, one.what, one.command, opened_at or now)
            listed.append(ListedAlert(one.site, problem, opened_at, None))
    rows = connection.execute(
        "SELECT site, kind, severity, what, command, opened_at, resolved_at FROM alert WHERE resolved_at > %s"
        " AND (%s::text IS NULL OR site = %s) ORDER BY resolved_at DESC, alert_id DESC",
        (now - timedelta(days=history_days), site, site),
    ).fetchall()
    ended = [ListedAlert(row[0], problem_of(*row[1:]), row[5], row[6]) for row in rows if history_days]
    return [*listed, *ended]
