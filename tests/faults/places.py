"""What fault tests of loading share: a home with its database, what must hold of it, and synthetic patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path

import psycopg
import pytest

from pipeline.core.clock import SystemClock
from pipeline.core.settings import MAPPINGS_FOLDER, Settings
from pipeline.extract.bulk import ingest_folder
from pipeline.load.load import load as load_export
from pipeline.quality.verify import verify_landing, verify_warehouse
from pipeline.sandbox.generator import generate
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine
from tests.warehouse_content import Content, warehouse_content

VOCABULARY = MAPPINGS_FOLDER / "demo_vocabulary"


class KillPoint(StrEnum):
    """Functions before or after whose calls a load is killed, as `tests.command_line.killed` names them."""

    FILE_LANDED = "pipeline.landing.store:LandingDraft.keep"
    LANDED_SAVED = "pipeline.warehouse.export_jobs:save_landed"
    CHUNK_COMPARED = "pipeline.load.load:compare_chunk"
    PUBLISHED = "pipeline.load.load:publish_export"
    ROWS_COPIED = "psycopg:Copy.write"
    MEMBERS_WRITTEN = "pipeline.publication.publish:write_members"
    RECORDED = "pipeline.publication.publish:_record"
    INDICES_DROPPED = "pipeline.publication.steps.bulk:drop_indices"
    DEPENDENTS_READ = "pipeline.load.follow_ups:read_dependents"
    LETTERS_FOUND = "pipeline.load.follow_ups:find_unblocked"
    REPLAY_LANDED = "pipeline.load.follow_ups:land_replay"


@dataclass(frozen=True)
class Place:
    """A home with a compiled vocabulary, and its database; without a URL its embedded one."""

    terminal: CommandLine

    @property
    def runtime(self) -> Runtime:
        return Runtime(Settings(home=self.terminal.home, database_url=self.terminal.url or None, workers=1))

    def content(self) -> Content:
        with self.runtime.connect() as connection:
            return warehouse_content(connection)

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with self.runtime.connect() as connection:
            return connection.execute(query).fetchall()

    def load(self, folder: Path, site: str = "s") -> None:
        """What `epic-omop ingest --from` does, in this process."""
        export = ingest_folder(self.runtime, site, folder)
        load_export(self.runtime, self.runtime.settings.site_or_folder(site), export)

    def load_landed(self, export_id: int) -> None:
        """What `epic-omop ingest --export` does."""
        export = self.runtime.landing.open("s", export_id)
        load_export(self.runtime, self.runtime.settings.site_or_folder("s"), export)

    def assert_accounts(self) -> None:
        """Accounts hold, and files are as they came."""
        runtime = self.runtime
        with runtime.connect() as connection:
            checks = [*verify_warehouse(connection, "cdm"), *verify_landing(connection, runtime.landing)]
        assert [check for check in checks if not check.ok] == []

    def assert_whole(self) -> None:
        """Accounts hold, files are as they came, and nothing of a dead run is left in staging or in the database."""
        self.assert_accounts()
        runtime = self.runtime
        assert [path for path in runtime.settings.staging.rglob("*") if path.is_file()] == []
        assert [path for path in runtime.settings.landing.rglob("*") if path.suffix in (".part", ".tmp")] == []
        wait(lambda: self.rows(_OTHER_SESSIONS) == [])
        assert self.rows("SELECT relname FROM pg_class WHERE relpersistence <> 'p'") == []
        assert self.rows("SELECT * FROM pg_prepared_xacts") == []


_OTHER_SESSIONS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND application_name = 'epic-omop'"
)


def wait(holds: Callable[[], bool], seconds: float = 60) -> None:
    for _ in range(int(seconds / 0.05)):
        if holds():
            return
        SystemClock().sleep(0.05)
    pytest.fail("what a test waits for did not happen")


def waits_for_lock(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'").fetchone()
    return row is not None and row[0] > 0


def write_patients(folder: Path, patients: int = 15) -> None:
    """Synthetic patients as NDJSON, broken lines among theirs."""
    lines: dict[str, list[bytes]] = {}
    for kind, line in generate(patients, 1, date(2026, 1, 1)):
        lines.setdefault(kind, []).append(line)
    for kind, content in lines.items():
        (folder / f"{kind}.ndjson").write_bytes(b"\n".join(content) + b"\n")
