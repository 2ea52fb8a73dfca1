"""`etl.crawl_patient`, `etl.crawl_search`: how far a crawl is, so that any process can continue.

Functions on a connection whose search_path begins with the `etl` schema. They do not commit. Patients are known by their
place in the crawl's list everywhere else: files and messages never hold an id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import polars as pl
import psycopg
from psycopg.types.json import Jsonb

from omop_schema.exports import ExportKind, ExportState, sql_values
from pipeline.warehouse.copying import copy_frame
from pipeline.warehouse.export_jobs import ExportJob, get_job

__all__ = [
    "CrawlSearch",
    "SearchState",
    "add_patients",
    "last_searches",
    "open_crawl",
    "patients",
    "save_progress",
    "save_search",
    "searches",
]

#: complete; incomplete (a part was refused); refused (all of it); missing (no such patient); failed (to be repeated).
SearchState = Literal["complete", "incomplete", "refused", "missing", "failed"]


@dataclass(frozen=True)
class CrawlSearch:
    """Result of the searches for one type of one patient."""

    position: int
    resource_type: str
    state: SearchState
    resources: int
    started_at: datetime
    #: what was asked for in addition to the patient
    searches: str
    #: what the server answered → how often
    codes: Mapping[str, int] = field(default_factory=dict)


def open_crawl(connection: psycopg.Connection, site: str, label: str) -> ExportJob | None:
    """The crawl of that label that is not loaded yet: unfinished, or landed."""
    row = connection.execute(
        f"SELECT export_id FROM export_job WHERE kind = '{ExportKind.CRAWL}' AND site = %s AND group_id = %s"
        f" AND state IN {sql_values((ExportState.REQUESTED, ExportState.LANDED))} ORDER BY export_id LIMIT 1",
        (site, label),
    ).fetchone()
    return get_job(connection, row[0]) if row else None


def add_patients(connection: psycopg.Connection, export_id: int, patient_ids: Sequence[str]) -> None:
    """The list of a crawl, in its order, from position 1."""
    frame = pl.DataFrame({"patient_id": list(patient_ids)}, schema={"patient_id": pl.String})
    copy_frame(
        connection,
        "crawl_patient",
        frame.select(
            pl.lit(export_id, dtype=pl.Int64).alias("export_id"),
            pl.int_range(1, pl.len() + 1).alias("position"),
            "patient_id",
        ),
    )


def patients(connection: psycopg.Connection, export_id: int) -> list[tuple[int, str]]:
    """(position, id) in order."""
    return connection.execute(
        "SELECT position, patient_id FROM crawl_patient WHERE export_id = %s ORDER BY position", (export_id,)
    ).fetchall()


def searches(connection: psycopg.Connection, export_id: int) -> list[CrawlSearch]:
    """All that is recorded of a crawl."""
    rows = connection.execute(
        "SELECT position, resource_type, state, resources, started_at, searches, codes FROM crawl_search"
        " WHERE export_id = %s ORDER BY position, resource_type",
        (export_id,),
    ).fetchall()
    return [CrawlSearch(*row) for row in rows]


def save_search(connection: psycopg.Connection, export_id: int, search: CrawlSearch) -> None:
    """Record a type of a patient; it replaces a failed one."""
    connection.execute(
        "INSERT INTO crawl_search (export_id, position, resource_type, state, resources, started_at, searches, codes)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (export_id, position, resource_type) DO UPDATE SET"
        " (state, resources, started_at, searches, codes) = ROW(excluded.state, excluded.resources, excluded.started_at,"
        " excluded.searches, excluded.codes)",
        (
            export_id,
            search.position,
            search.resource_type,
            search.state,
            search.resources,
            search.started_at,
            search.searches,
            Jsonb(dict(search.codes)),
        ),
    )


def save_progress(connection: psycopg.Connection, export_id: int, progress: str) -> None:
    """How far the crawl is, for `epic-omop status`."""
    connection.execute("UPDATE export_job SET progress = %s WHERE export_id = %s", (progress, export_id))


def last_searches(connection: psycopg.Connection, export_id: int) -> dict[tuple[int, str, str], datetime]:
    """(position, type, searches) of a crawl → when a loaded crawl last began to search the same, and found it whole."""
    rows = connection.execute(
        "SELECT mine.position, search.resource_type, search.searches, max(search.started_at) FROM crawl_patient AS mine"
        " JOIN export_job AS job ON job.export_id = mine.export_id"
        f" JOIN export_job AS before ON before.site = job.site AND before.kind = '{ExportKind.CRAWL}'"
        f" AND before.state = '{ExportState.PUBLISHED}'"
        " JOIN crawl_patient AS theirs ON theirs.export_id = before.export_id AND theirs.patient_id = mine.patient_id"
        " JOIN crawl_search AS search ON search.export_id = theirs.export_id AND search.position = theirs.position"
        " WHERE mine.export_id = %s AND search.state = 'complete' GROUP BY 1, 2, 3",
        (export_id,),
    ).fetchall()
    return {(position, resource_type, asked): started for position, resource_type, asked, started in rows}
