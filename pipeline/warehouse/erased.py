"""`etl.erased_person`: who was erased, known by a hash alone. A tombstone is never taken back.

Functions on a connection whose search_path begins with the `etl` schema. They do not commit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.types.json import Jsonb

from pipeline.core.clock import Clock
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import current_workflow

__all__ = [
    "Erasure",
    "erased_patients",
    "erasures",
    "finish_tombstones",
    "log_erasure",
    "put_tombstones",
    "unfinished_patients",
]


@dataclass(frozen=True)
class Erasure:
    """One erasure of a site: `patients` counts Patient resources, `counts` is what was found of them."""

    site: str
    erased_at: datetime
    finished_at: datetime | None
    patients: int
    counts: Mapping[str, int]


def erased_patients(connection: psycopg.Connection, site: str) -> frozenset[int]:
    """Surrogate ids of the Patients of a site of whom nothing is to be loaded."""
    rows = connection.execute("SELECT surrogate_id FROM erased_person WHERE site = %s", (site,)).fetchall()
    return frozenset(row[0] for row in rows)


def unfinished_patients(connection: psycopg.Connection, site: str) -> frozenset[int]:
    """Those whose erasure was interrupted."""
    rows = connection.execute(
        "SELECT surrogate_id FROM erased_person WHERE site = %s AND finished_at IS NULL", (site,)
    ).fetchall()
    return frozenset(row[0] for row in rows)


def put_tombstones(
    connection: psycopg.Connection, site: str, patients: Collection[int], at: datetime, counts: Mapping[str, int]
) -> None:
    """Remember that these Patients are erased. An older tombstone keeps its time and its counts."""
    connection.execute(
        "INSERT INTO erased_person (surrogate_id, site, erased_at, counts)"
        " SELECT unnest(%s::bigint[]), %s, %s, %s ON CONFLICT (surrogate_id) DO NOTHING",
        (sorted(patients), site, at, Jsonb(dict(counts))),
    )


def finish_tombstones(connection: psycopg.Connection, patients: Collection[int], at: datetime) -> None:
    """Nothing of these Patients is left."""
    connection.execute(
        "UPDATE erased_person SET finished_at = %s WHERE surrogate_id = ANY(%s) AND finished_at IS NULL",
        (at, sorted(patients)),
    )


def erasures(connection: psycopg.Connection, site: str | None = None) -> list[Erasure]:
    """All erasures, oldest first."""
    rows = connection.execute(
        "SELECT site, erased_at, CASE WHEN bool_and(finished_at IS NOT NULL) THEN max(finished_at) END, count(*),"
        " (array_agg(counts))[1] FROM erased_person WHERE %s::text IS NULL OR site = %s"
        " GROUP BY site, erased_at ORDER BY erased_at, site",
        (site, site),
    ).fetchall()
    return [Erasure(*row) for row in rows]


def log_erasure(
    connection: psycopg.Connection, site: SiteSettings, clock: Clock, *, patients: int, lines: int, rows: int
) -> None:
    """Who erased, when, and how much; never whom."""
    workflow = current_workflow()
    connection.execute(
        "INSERT INTO access_log (at, site, client_id, run_id, os_user, workflow, event, outcome, resource_type,"
        " resources, detail) VALUES (%s, %s, %s, %s, %s, %s, 'erase', 'ok', 'Patient', %s, %s)",
        (
            clock.now(),
            site.name,
            site.client_id,
            workflow.run_id,
            workflow.os_user,
            workflow.name,
            lines,
            f"patients {patients}, rows {rows}",
        ),
    )
