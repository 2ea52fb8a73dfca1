"""One snapshot of the warehouse: everything is read in one transaction, and becomes visible with one rename.

The transaction is READ ONLY and REPEATABLE READ: publications that commit meanwhile are not in the snapshot, and are
not delayed. What replaces whole tables is: loading a vocabulary empties them by TRUNCATE, which a transaction's
snapshot does not see through, so the tables are locked against that before the first of them is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import IsolationLevel

from pipeline.core.errors import CheckFailed, LakehouseError, WarehouseError
from pipeline.core.files import write_whole
from pipeline.core.settings import Settings
from pipeline.lakehouse.duckdb_views import open_sql
from pipeline.lakehouse.layout import EXACT_NUMBER, LakeTable, lake_tables
from pipeline.lakehouse.parquet import FILE_BYTES, LakeFile, TableWriter
from pipeline.lakehouse.rows import BATCH_BYTES, table_batches
from pipeline.lakehouse.snapshot_file import SNAPSHOT_FILE, content_of, read_snapshot, run_metadata, table_entry
from pipeline.lakehouse.store import LakehouseFolder
from pipeline.quality.checks.asking import ask
from pipeline.quality.checks.model import Schemas, Severity
from pipeline.quality.checks.rules import all_rules
from pipeline.warehouse.access_looks import record_look
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors
from pipeline.warehouse.vocabulary.switching import hold_vocabulary

__all__ = ["SnapshotOptions", "SnapshotReport", "publish_snapshot"]

#: (table, rows done, rows in all as PostgreSQL estimates them)
Progress = Callable[[str, int, int], None]


#: Failed checks that a refusal names.
_MOST_SHOWN = 5


@dataclass(frozen=True)
class SnapshotOptions:
    vocabulary: bool = False
    lineage: bool = False
    #: Snapshots besides the new one that stay, for readers that are at work on them.
    keep: int = 1
    group_readable: bool = False
    #: CSV that is read at once, and rows in memory at which a file is closed.
    batch_bytes: int = BATCH_BYTES
    file_bytes: int = FILE_BYTES
    #: Write it although checks say that analysts must not see the warehouse as it is.
    despite_checks: bool = False


@dataclass(frozen=True)
class SnapshotReport:
    """What was written. `tables`: path → (rows, files, bytes)."""

    snapshot: str
    folder: Path
    tables: Mapping[str, tuple[int, int, int]]
    metadata: Mapping[str, Any]
    removed_snapshots: int

    @property
    def rows(self) -> int:
        return sum(rows for rows, _, _ in self.tables.values())

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size in self.tables.values())


def publish_snapshot(
    runtime: Runtime,
    lakehouse: LakehouseFolder,
    options: SnapshotOptions | None = None,
    progress: Progress = lambda *_: None,
) -> SnapshotReport:
    """Write the warehouse's state of this moment as a snapshot and make it the latest; then remove the oldest ones.

    Raises CheckFailed where the warehouse does not pass its checks, UsageError for a folder that is none of ours,
    TransientError while another run writes to it, LakehouseError
    when it cannot be written, WarehouseError when the database is empty or fails. The latest snapshot then stays.
    """
    options = options or SnapshotOptions()
    version = runtime.settings.cdm_version
    tables = lake_tables(version, vocabulary=options.vocabulary, lineage=options.lineage)
    with server_errors(), _one_state(runtime, tables) as connection, lakehouse.writing():
        if not options.despite_checks:
            _refuse_failed_checks(connection, runtime)
        metadata = run_metadata(connection, runtime.settings)
        created_at = runtime.clock.now()
        snapshot, draft = lakehouse.new_snapshot(created_at)
        writing = _Writing(runtime.settings, connection, options, draft, _former(lakehouse), progress)
        entries = writing.write(tables)
        write_whole(draft / "open.sql", open_sql(lakehouse.folder, snapshot, version, [*tables, EXACT_NUMBER]).encode())
        write_whole(draft / SNAPSHOT_FILE, content_of(snapshot, created_at, metadata, entries))
        final = lakehouse.complete(snapshot, group_readable=options.group_readable)
        counts = {path: (entry["rows"], len(entry["files"]), entry["bytes"]) for path, entry in entries.items()}
        report = SnapshotReport(snapshot, final, counts, metadata, lakehouse.prune(options.keep))
    record_look(runtime, "snapshot", resources=report.rows, detail="with lineage" if options.lineage else None)
    return report


def _refuse_failed_checks(connection: psycopg.Connection, runtime: Runtime) -> None:
    """The rules that analysts rely on, asked of the very state that would be written."""
    settings = runtime.settings
    schemas = Schemas(settings.cdm_schema, settings.vocab_schema, settings.cdm_version)
    rules = [rule for rule in all_rules() if rule.severity == Severity.ERROR]
    failed = [finding for finding in ask(connection, schemas, rules) if finding.problems]
    if failed:
        shown = "; ".join(f"{finding.rule.title}: {finding.problems:,}" for finding in failed[:_MOST_SHOWN])
        raise CheckFailed(
            f"The warehouse does not pass {len(failed)} checks, so no snapshot is written: {shown}.",
            "The latest snapshot stays. `epic-omop verify` shows all checks; `epic-omop lakehouse snapshot --despite-checks`"
            " writes one all the same.",
            check=failed[0].rule.name,
            table=failed[0].rule.cdm_table,
        )


@contextmanager
def _one_state(runtime: Runtime, tables: list[LakeTable]) -> Iterator[psycopg.Connection]:
    """A connection in a transaction that sees the database as it is now, and changes nothing."""
    with runtime.connect() as connection:
        if any(table.folder == "vocab" for table in tables):
            hold_vocabulary(connection, runtime.settings.etl_schema)
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        etl = runtime.settings.etl_schema
        relations = [f"{etl}.{name}" for name in ("publication", "export_job", "vocabulary_release")]
        relations += [table.relation(runtime.settings) for table in tables]
        try:
            # The first statement: PostgreSQL takes the transaction's snapshot with the one that follows.
            connection.execute(f"LOCK TABLE {', '.join(relations)} IN ACCESS SHARE MODE")
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            raise WarehouseError(
                "The database holds no warehouse yet, or not all of its tables.",
                "Make its schemas with `epic-omop db init`.",
            ) from None
        connection.execute("SET LOCAL DateStyle = 'ISO, YMD'")  # how COPY writes dates
        yield connection
        connection.rollback()


def _former(lakehouse: LakehouseFolder) -> tuple[Path | None, dict[str, LakeFile]]:
    """The latest snapshot's folder and files, which new files that are the same become links to."""
    latest = lakehouse.latest()
    if latest is None:
        return None, {}
    try:
        return latest, {file.path: file for table in read_snapshot(latest).values() for file in table.files}
    except LakehouseError:  # damaged: nothing is taken from it
        return None, {}


@dataclass(frozen=True)
class _Writing:
    settings: Settings
    connection: psycopg.Connection
    options: SnapshotOptions
    draft: Path
    former: tuple[Path | None, dict[str, LakeFile]]
    progress: Progress

    def write(self, tables: list[LakeTable]) -> dict[str, Any]:
        """All tables; path → entry of snapshot.json."""
        entries, done, total = {}, 0, self._estimated_rows(tables)
        exact = self._writer(EXACT_NUMBER)
        for table in tables:
            self.progress(table.path, done, total)
            writer = self._writer(table)
            batches = table_batches(self.connection, self.settings, table, batch_bytes=self.options.batch_bytes)
            for batch in batches:
                writer.add(batch.frame)
                if not batch.exact.is_empty():
                    exact.add(batch.exact)
                done += batch.frame.height
                self.progress(table.path, done, total)
            entries[table.path] = table_entry(table, writer.close())
        entries[EXACT_NUMBER.path] = table_entry(EXACT_NUMBER, exact.close())
        return entries

    def _writer(self, table: LakeTable) -> TableWriter:
        return TableWriter(self.draft, table, *self.former, file_bytes=self.options.file_bytes)

    def _estimated_rows(self, tables: list[LakeTable]) -> int:
        """As of the last ANALYZE; views have none."""
        row = self.connection.execute(
            "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class WHERE oid = ANY(%s::regclass[]::oid[])",
            ([table.relation(self.settings) for table in tables],),
        ).fetchone()
        return int(row[0]) if row else 0
