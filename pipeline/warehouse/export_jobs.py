"""`etl.export_job`, `etl.export_file`, `etl.cool_down`: what is remembered of exports, so that any process can continue.

Functions on a connection whose search_path begins with the `etl` schema. They do not commit: the caller decides what
belongs together. States and what they mean are listed in docs/modules.md; every change of state names the states
that it may come from, so that two processes cannot overwrite each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from omop_schema.exports import OPEN_STATES, ExportKind, ExportState
from pipeline.core.errors import CooldownActive, SiteBusy, WarehouseError
from pipeline.landing.deletions import read_deletions
from pipeline.landing.origin import Gap
from pipeline.landing.outcomes import site_messages
from pipeline.landing.store import LandedExport

__all__ = [
    "CoolDown",
    "ExportJob",
    "SiteWork",
    "clear_cool_down",
    "cool_down",
    "create_job",
    "find_job",
    "get_job",
    "jobs_of_kind",
    "last_started",
    "list_jobs",
    "lock_warehouse",
    "mark_deleted",
    "mark_failed",
    "mark_gone",
    "mark_skipped",
    "next_export_id",
    "open_job",
    "put_cool_down",
    "save_asked_types",
    "save_error",
    "save_files",
    "save_landed",
    "save_manifest",
    "save_poll",
    "save_status_url",
    "site_lock",
    "sites_with_exports",
    "unfinished_folder_jobs",
]

#: Locks that blocks around this one hold and lend.
_LENT: ContextVar[frozenset[tuple[str, int, str, str, str]]] = ContextVar("lent_site_locks", default=frozenset())

_COLUMNS = (
    "export_id, site, group_id, kind, state, attempt, resource_types, status_url, manifest, progress, error,"
    " requested_at, next_poll_at, transaction_time, landed_at, published_at, deleted_at, since, notes, failing_since,"
    " complete_since"
)


@dataclass(frozen=True)
class ExportJob:
    """One row of `etl.export_job`; times are UTC. `group_id` is None for a folder."""

    export_id: int
    site: str
    group_id: str | None
    kind: ExportKind
    state: ExportState
    attempt: int
    resource_types: Sequence[str]
    status_url: str | None
    manifest: dict[str, Any] | None
    progress: str | None
    error: str | None
    requested_at: datetime
    next_poll_at: datetime | None
    transaction_time: datetime | None
    landed_at: datetime | None
    published_at: datetime | None
    deleted_at: datetime | None
    #: `_since` of the kick-off; None: everything was asked for.
    since: datetime | None = None
    #: What was done otherwise than the site says, a sentence each.
    notes: Sequence[str] = ()
    #: Of the first status call in a row that failed.
    failing_since: datetime | None = None
    #: When its manifest came.
    complete_since: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", ExportKind(self.kind))  # texts in the database
        object.__setattr__(self, "state", ExportState(self.state))

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES


@dataclass(frozen=True)
class CoolDown:
    """Until when a group is not to be kicked off, and why."""

    next_try: datetime
    reason: str

    def error(self, site: str, group: str) -> CooldownActive:
        return CooldownActive(
            f"Group {group} of site {site} is not exported before {self.next_try:%Y-%m-%d %H:%M} UTC: {self.reason}",
            "Nothing needs to be done: a run after that time exports it.",
            next_try=self.next_try,
        )


class SiteWork(StrEnum):
    """What one process at a time does for a site. The value is a part of the lock's key, and stands in messages."""

    INGEST = "ingest"
    REMAP = "remap"
    HYDRATION = "the hydration"
    FOLDER = "the ingest of a folder"
    #: of one group: kick-off, abandoning
    GROUP = "group"
    #: of one export, by its id: download
    EXPORT = "export"
    #: of one list of patients, by its label
    CRAWL = "crawl"


def lock_warehouse(connection: psycopg.Connection) -> None:
    """Until the transaction ends, nobody else publishes into the warehouse or erases from it: two sites' first loads
    would each wait for the other's tables. The warehouse is that of the first schema on the search_path (etl)."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('epic-omop publication ' || current_schema()))")


@contextmanager
def site_lock(
    connection: psycopg.Connection,
    site: str,
    work: SiteWork,
    name: str | int = "",
    *,
    wait_seconds: float = 5.0,
    lent: bool = False,
) -> Iterator[None]:
    """One process at a time does `work` for a site, on any machine that uses this warehouse. `name`: of which group,
    export or crawl.

    The warehouse is that of the first schema on the search_path. The lock belongs to the connection's session: when
    its process is killed, the server lets go of it. Transactions inside the block commit as they like. `lent`: what is
    called inside the block and takes the same lock is let in. Raises SiteBusy when somebody else holds it for longer than
    the wait.
    """
    what = f"{work} {name}".rstrip()
    key = f"epic-omop export:{site}:{what}"
    schema = connection.execute("SELECT current_schema()").fetchone()
    own = (connection.info.host, connection.info.port, connection.info.dbname, str(schema), key)
    if own in _LENT.get():
        yield
        return
    try:
        connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{int(wait_seconds * 1000)}ms"])
        connection.execute("SELECT pg_advisory_lock(hashtextextended(current_schema() || ' ' || %s, 0))", [key])
        connection.commit()
    except psycopg.errors.LockNotAvailable:
        connection.rollback()
        raise SiteBusy(
            f"Another process is working on {what} of site {site}.", "Wait until it has ended, or look at it."
        ) from None
    former = _LENT.set(_LENT.get() | {own}) if lent else None
    try:
        yield
    finally:
        if former:
            _LENT.reset(former)
        if not connection.closed:
            connection.rollback()  # what the block did not commit is undone, as without the lock
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(current_schema() || ' ' || %s, 0))", [key])
            connection.commit()


def next_export_id(connection: psycopg.Connection) -> int:
    """The next id of the sequence, also when the transaction is rolled back."""
    return _number(connection, "SELECT nextval(pg_get_serial_sequence('export_job', 'export_id'))")


def create_job(
    connection: psycopg.Connection,
    *,
    export_id: int,
    site: str,
    group: str | None,
    kind: ExportKind,
    resource_types: Sequence[str],
    requested_at: datetime,
    since: datetime | None = None,
    notes: Sequence[str] = (),
    state: ExportState = ExportState.REQUESTED,
) -> ExportJob:
    """Write a job in the state `requested`, before its request is sent; `failed`: of one that ended before it was known."""
    connection.execute(
        "INSERT INTO export_job (export_id, site, group_id, kind, state, resource_types, requested_at, since, notes)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [export_id, site, group, kind, state, Jsonb(list(resource_types)), requested_at, since, Jsonb(list(notes))],
    )
    return get_job(connection, export_id)


def get_job(connection: psycopg.Connection, export_id: int) -> ExportJob:
    """The job of that id. Raises WarehouseError when there is none."""
    jobs = _select(connection, "export_id = %s", [export_id])
    if not jobs:
        raise WarehouseError(f"There is no export {export_id} in the warehouse.")
    return jobs[0]


def open_job(connection: psycopg.Connection, site: str, group: str) -> ExportJob | None:
    """The open export of a group: there is at most one, by a unique index."""
    jobs = _select(
        connection,
        f"kind = '{ExportKind.BULK}' AND site = %s AND group_id = %s AND state = ANY(%s)",
        [site, group, list(OPEN_STATES)],
    )
    return jobs[0] if jobs else None


def find_job(connection: psycopg.Connection, export_id: int) -> ExportJob | None:
    """The job of that id, if the warehouse knows it."""
    return next(iter(_select(connection, "export_id = %s", [export_id])), None)


def unfinished_folder_jobs(connection: psycopg.Connection, site: str) -> list[ExportJob]:
    """Folder exports of a site that were begun and not landed."""
    return _select(
        connection, f"kind = '{ExportKind.FOLDER}' AND site = %s AND state = '{ExportState.REQUESTED}'", [site]
    )


def jobs_of_kind(connection: psycopg.Connection, site: str, kind: ExportKind, state: ExportState) -> list[ExportJob]:
    """Jobs of a site in one state, the newest first: such as hydrations that are landed and not loaded."""
    return _select(connection, "kind = %s AND site = %s AND state = %s", [kind, site, state])


def list_jobs(connection: psycopg.Connection, site: str | None = None, *, limit: int = 100) -> list[ExportJob]:
    """The newest jobs first, of one site or of all."""
    return _select(connection, "%s::text IS NULL OR site = %s", [site, site], limit=limit)


def last_started(connection: psycopg.Connection, site: str, group: str) -> datetime | None:
    """When this group was last kicked off with success; None: not by this warehouse."""
    row = connection.execute(
        "SELECT max(requested_at) FROM export_job"
        f" WHERE kind = '{ExportKind.BULK}' AND site = %s AND group_id = %s AND status_url IS NOT NULL",
        [site, group],
    ).fetchone()
    return row[0] if row else None


def save_status_url(
    connection: psycopg.Connection, export_id: int, status_url: str, next_poll_at: datetime
) -> ExportJob:
    """requested → running."""
    return _update(
        connection,
        export_id,
        {"state": ExportState.RUNNING, "status_url": status_url, "next_poll_at": next_poll_at},
        expected=(ExportState.REQUESTED,),
    )


def save_poll(
    connection: psycopg.Connection,
    export_id: int,
    *,
    next_poll_at: datetime,
    progress: str | None = None,
    error: str | None = None,
    failing_since: datetime | None = None,
) -> ExportJob:
    """The export still runs, or the question failed (`error`, for the first time in a row at `failing_since`) and is
    asked again at `next_poll_at`."""
    values = {"next_poll_at": next_poll_at, "error": error, "failing_since": failing_since}
    if progress:
        values["progress"] = progress
    return _update(connection, export_id, values, expected=(ExportState.RUNNING,))


def save_manifest(
    connection: psycopg.Connection,
    export_id: int,
    manifest: Mapping[str, Any],
    transaction_time: datetime,
    *,
    complete_since: datetime | None = None,
    notes: Sequence[str] = (),
) -> ExportJob:
    """running → complete; for a complete one, the manifest that was read again.

    `transaction_time` is the one that orders the export, `notes` say why it is not the site's.
    """
    values: dict[str, object] = {
        "state": ExportState.COMPLETE,
        "manifest": Jsonb(dict(manifest)),
        "transaction_time": transaction_time,
        "next_poll_at": None,
        "error": None,
        "failing_since": None,
    }
    if complete_since is not None:
        values |= {"complete_since": complete_since, "notes": Jsonb(list(notes))}
    return _update(connection, export_id, values, expected=(ExportState.RUNNING, ExportState.COMPLETE))


def save_landed(
    connection: psycopg.Connection, export: LandedExport, landed_at: datetime, gaps: Sequence[Gap] = ()
) -> ExportJob:
    """complete (of a folder: requested) → landed; what `save_files` keeps of its files."""
    job = _update(
        connection,
        export.export_id,
        {
            "state": ExportState.LANDED,
            "transaction_time": export.transaction_time,
            "landed_at": landed_at,
            "error": None,
        },
        expected=(ExportState.REQUESTED, ExportState.COMPLETE),
    )
    save_files(connection, export, gaps)
    return job


def save_files(connection: psycopg.Connection, export: LandedExport, gaps: Sequence[Gap] = ()) -> None:
    """A row of `export_file` for each file of resources and of deleted ones (whose lines are their entries), of
    `export_outcome` for each kind of message of the site, and of `export_gap` for each file that is not as announced."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO export_file"
            " (export_id, file_number, resource_type, file, expected_count, bytes, lines, sha256)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    export.export_id,
                    file.number,
                    file.resource_type,
                    export.relative_name(file),
                    file.expected_count,
                    file.bytes,
                    sum(1 for _ in read_deletions(file.path)) if file in export.deleted else file.lines,
                    file.sha256,
                )
                for file in (*export.files, *export.deleted)
            ],
        )
        cursor.executemany(
            "INSERT INTO export_outcome (export_id, weight, severity, code, site_code, count)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [
                (export.export_id, kind.weight, kind.severity, kind.code, kind.site_code, count)
                for kind, count in site_messages(export.outcomes).items()
            ],
        )
        cursor.executemany(
            "INSERT INTO export_gap (export_id, file_number, category, resource_type, reason, expected_count, lines)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    export.export_id,
                    gap.number,
                    gap.category,
                    gap.resource_type,
                    gap.reason,
                    gap.expected_count,
                    gap.lines,
                )
                for gap in gaps
            ],
        )


def save_asked_types(connection: psycopg.Connection, export_id: int, resource_types: Sequence[str]) -> None:
    """Of which types an export counts as complete, where that is known only when its files are there."""
    connection.execute(
        "UPDATE export_job SET resource_types = %s WHERE export_id = %s", [Jsonb(list(resource_types)), export_id]
    )


def save_error(connection: psycopg.Connection, export_id: int, error: str) -> None:
    """Why the last attempt did not get further; the state stays."""
    connection.execute("UPDATE export_job SET error = %s WHERE export_id = %s", [error, export_id])


def mark_failed(connection: psycopg.Connection, export_id: int, error: str) -> ExportJob:
    return _update(connection, export_id, {"state": ExportState.FAILED, "error": error}, expected=OPEN_STATES)


def mark_skipped(connection: psycopg.Connection, export_id: int, error: str) -> ExportJob:
    """The server refuses a kick-off inside the group's window."""
    return _update(
        connection, export_id, {"state": ExportState.SKIPPED, "error": error}, expected=(ExportState.REQUESTED,)
    )


def mark_gone(connection: psycopg.Connection, export_id: int, error: str) -> ExportJob:
    """The server no longer knows the job."""
    return _update(
        connection,
        export_id,
        {"state": ExportState.GONE, "error": error},
        expected=(ExportState.RUNNING, ExportState.COMPLETE),
    )


def mark_deleted(connection: psycopg.Connection, export_id: int, deleted_at: datetime) -> ExportJob:
    """The job was deleted on the server; the state stays."""
    return _update(connection, export_id, {"deleted_at": deleted_at})


def cool_down(connection: psycopg.Connection, site: str, client_id: str, group: str, now: datetime) -> CoolDown | None:
    """The cool-down that holds at `now`, if there is one."""
    row = connection.execute(
        "SELECT next_try, reason FROM cool_down WHERE site = %s AND client_id = %s AND group_id = %s AND next_try > %s",
        [site, client_id, group, now],
    ).fetchone()
    return CoolDown(*row) if row else None


def put_cool_down(connection: psycopg.Connection, site: str, client_id: str, group: str, entry: CoolDown) -> None:
    """Remember a cool-down; it replaces the group's earlier one."""
    connection.execute(
        "INSERT INTO cool_down (site, client_id, group_id, next_try, reason) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT (site, client_id, group_id) DO UPDATE SET next_try = excluded.next_try, reason = excluded.reason",
        [site, client_id, group, entry.next_try, entry.reason],
    )


def clear_cool_down(connection: psycopg.Connection, site: str, client_id: str, group: str) -> None:
    """Forget a cool-down, after the server accepted a kick-off."""
    connection.execute(
        "DELETE FROM cool_down WHERE site = %s AND client_id = %s AND group_id = %s", [site, client_id, group]
    )


def _select(
    connection: psycopg.Connection, condition: str, parameters: Sequence[object], limit: int | None = None
) -> list[ExportJob]:
    statement = f"SELECT {_COLUMNS} FROM export_job WHERE {condition} ORDER BY export_id DESC LIMIT %s"
    with connection.cursor(row_factory=class_row(ExportJob)) as cursor:
        return cursor.execute(statement, [*parameters, limit]).fetchall()


def _update(
    connection: psycopg.Connection,
    export_id: int,
    values: Mapping[str, object],
    *,
    expected: Sequence[ExportState] | None = None,
) -> ExportJob:
    """Set columns of a job that is in one of the expected states; another process may have moved it on."""
    assignments = ", ".join(f"{column} = %s" for column in values)
    parameters = [*values.values(), export_id, expected is None, list(expected or ())]
    updated = connection.execute(
        f"UPDATE export_job SET {assignments} WHERE export_id = %s AND (%s OR state = ANY(%s))", parameters
    ).rowcount
    job = get_job(connection, export_id)
    if not updated:
        raise SiteBusy(f"Export {export_id} of site {job.site} is {job.state} now: another process has moved it on.")
    return job


def _number(connection: psycopg.Connection, statement: str) -> int:
    row = connection.execute(statement).fetchone()
    if row is None or row[0] is None:
        raise WarehouseError("The warehouse has no tables for exports.", "Run `epic-omop db init`.")
    return int(row[0])


def sites_with_exports(connection: psycopg.Connection) -> list[str]:
    """Every site of which an export was begun, also from a folder; none where the schema is not there yet."""
    if connection.execute("SELECT to_regclass('export_job')").fetchone() == (None,):
        return []
    return [row[0] for row in connection.execute("SELECT DISTINCT site FROM export_job ORDER BY site").fetchall()]
