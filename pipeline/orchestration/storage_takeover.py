"""From Dagster's SQLite files into its storage in PostgreSQL: runs, events, switches and their ticks. The files stay.

Tables of runs and of switches are the same in both and are copied by rows. Events lie in a file for each run and partly
again in an index: they are stored anew, by Dagster, which fills its tables of assets and checks from them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as db

if TYPE_CHECKING:
    from dagster import EventLogEntry
    from dagster._core.storage.event_log import SqliteEventLogStorage
    from dagster_postgres import DagsterPostgresStorage

__all__ = ["take_over"]

_log = logging.getLogger(__name__)

_ROWS = 1000
#: Of Dagster's own processes and migrations, not of the runs.
_OWN = ("secondary_indexes", "daemon_heartbeats", "alembic_version")


def take_over(folder: Path, storage: DagsterPostgresStorage) -> None:
    """Copy what DAGSTER_HOME `folder` holds into the fresh storage; nothing where there are no files."""
    from dagster._core.storage.runs.schema import RunStorageSqlMetadata
    from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

    runs, schedules = folder / "history" / "runs.db", folder / "schedules" / "schedules.db"
    if not runs.is_file() or not schedules.is_file():
        return
    engine = db.create_engine(storage.postgres_url)
    try:
        copied = _copy_tables(schedules, ScheduleStorageSqlMetadata, engine)
        copied += _copy_tables(runs, RunStorageSqlMetadata, engine)
    finally:
        engine.dispose()
    events = _store_events(folder, storage)
    _log.info(
        "Dagster's storage is in PostgreSQL now: %d rows and %d events of %s were copied.", copied, events, folder
    )


def _copy_tables(file: Path, metadata: db.MetaData, target: db.Engine) -> int:
    source = db.create_engine(f"sqlite:///{file}")
    copied = 0
    try:
        with source.connect() as old, target.begin() as new:
            there = set(db.inspect(old).get_table_names())
            for table in metadata.sorted_tables:
                if table.name in there and table.name not in _OWN:
                    copied += _copy_rows(table, old, new)
    finally:
        source.dispose()
    return copied


def _copy_rows(table: db.Table, old: db.Connection, new: db.Connection) -> int:
    """Rows keep their numbers; the next one that PostgreSQL gives is above them."""
    copied = 0
    for part in old.execute(db.select(table)).mappings().partitions(_ROWS):
        new.execute(db.insert(table), [dict(row) for row in part])
        copied += len(part)
    if copied and "id" in table.columns:
        newest = db.select(db.func.max(table.columns["id"])).scalar_subquery()
        new.execute(db.select(db.func.setval(db.func.pg_get_serial_sequence(table.name, "id"), newest)))
    return copied


def _store_events(folder: Path, storage: DagsterPostgresStorage) -> int:
    from dagster._core.storage.event_log import SqliteEventLogStorage

    old = SqliteEventLogStorage(str(folder / "history" / "runs"))
    stored = 0
    try:
        for event in _events(old, storage):
            storage.event_log_storage.store_event(event)
            stored += 1
    finally:
        old.dispose()
    return stored


def _events(old: SqliteEventLogStorage, storage: DagsterPostgresStorage) -> Iterator[EventLogEntry]:
    """By runs in their order, then what was reported without a run, which the index alone holds."""
    run_ids = [run.run_id for run in reversed(storage.run_storage.get_runs())]
    for run_id in run_ids:
        yield from old.get_logs_for_run(run_id)
    yield from _without_run(old)


def _without_run(old: SqliteEventLogStorage) -> Iterator[EventLogEntry]:
    from dagster import EventLogEntry
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
    from dagster._serdes import deserialize_value

    columns = SqlEventLogStorageTable.columns
    query = db.select(columns["event"]).where(columns["run_id"] == "").order_by(columns["id"])
    with old.index_connection() as connection:
        rows: Any = connection.execute(query).scalars().all()
    for row in rows:
        yield deserialize_value(row, EventLogEntry)
