"""The disk of PostgreSQL itself is full: what is told, and that the same command goes on once there is space.

The disk is a small tmpfs on which the embedded server lies, filled to the last byte or nearly so. Mounting needs root:
without that those tests say that they are skipped. What a quota and a limit of the server do is always tested.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil
import psycopg
import pytest

from pipeline.core.clock import SystemClock
from pipeline.core.errors import LandingError, WarehouseError
from pipeline.core.settings import SiteSettings
from pipeline.orchestration.definitions import build_definitions
from pipeline.orchestration.partitions import day_of
from pipeline.orchestration.site_assets import load_key
from pipeline.warehouse.connection import connect
from pipeline.warehouse.embedded.folder import ServerFolder, open_server_folder
from pipeline.warehouse.embedded.server import EmbeddedServer
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors
from tests.command_line import CommandLine, Finished
from tests.databases import Prepared, empty
from tests.faults.places import VOCABULARY, Place, wait, waits_for_lock, write_patients
from tests.warehouse_content import Content

_DISK_BYTES = 256 * 1024 * 1024
_MEBIBYTE = 1024 * 1024
#: One after the other, until no file can be made for the next.
_NEW_SEGMENTS = """
    DO $$ BEGIN FOR number IN 1..100 LOOP
        PERFORM pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal();
    END LOOP; END $$
"""


@dataclass(frozen=True)
class SmallDisk:
    """A home whose database lies on a disk of its own."""

    place: Place
    folder: ServerFolder

    @property
    def _ballast(self) -> Path:
        return self.folder.path / "ballast"

    @contextmanager
    def full(self, left: int = 0) -> Iterator[None]:
        """Nothing but `left` bytes are free, as long as the block lasts."""
        with self._ballast.open("wb", buffering=0) as ballast:
            while written := _write(ballast.fileno(), b"\0" * _MEBIBYTE):
                assert written > 0
            free = shutil.disk_usage(self.folder.path).free
            ballast.truncate(ballast.tell() - max(0, left - free))
        try:
            yield
        finally:
            self._ballast.unlink()

    def fails(self, *arguments: str | Path) -> Finished:
        """A command that the full disk stops."""
        finished = self.place.terminal.run(*arguments, code=74)
        assert "Make space" in finished.err, finished.err
        return finished


def _write(descriptor: int, content: bytes) -> int:
    try:
        return os.write(descriptor, content)
    except OSError:
        return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    write_patients(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(demo_warehouse: Prepared, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The content after one run that nobody disturbed."""
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    with demo_warehouse.copy(home) as url:
        place = Place(CommandLine(home, url))
        place.load(folder)
        return place.content()


@contextmanager
def _mounted(folder: Path, size: int) -> Iterator[None]:
    """A small disk of memory at a folder."""
    command = ("mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "tmpfs", str(folder))
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


@pytest.fixture(scope="module")
def disk(make_home: Callable[[], AbstractContextManager[Path]]) -> Iterator[SmallDisk]:
    with make_home() as home:
        folder = open_server_folder(home.resolve())
        with _mounted(folder.path, _DISK_BYTES):
            place = Place(CommandLine(home, ""))
            try:
                place.terminal.run("vocabulary", "load", VOCABULARY)
                yield SmallDisk(place, folder)
            finally:
                EmbeddedServer(home).stop()


def test_a_load_on_a_full_disk(disk: SmallDisk, folder: Path, undisturbed: Content) -> None:
    """Full before the first statement, and in the middle of a publication."""
    place, ingest = disk.place, ("ingest", "--site", "s", "--from", folder)
    for left in (0, 400_000):
        with disk.full(left):
            told = disk.fails(*ingest)
            assert "The disk of PostgreSQL is full" in told.err
            assert [name for name in _patients(folder) if name in told.err] == []
            if left:
                assert "The disk of PostgreSQL is full" in _failure_in_dagster(place)
        assert place.content() == {}, "nothing is half there"
        place.assert_accounts()
    place.terminal.run(*ingest)
    assert place.content() == undisturbed
    place.assert_whole()


def _patients(folder: Path) -> list[str]:
    return re.findall(r'"id": ?"([^"]+)"', (folder / "Patient.ndjson").read_text())


def _failure_in_dagster(place: Place) -> str:
    """What the asset says that loads the landed export."""
    site = SiteSettings(name="s")
    settings = place.runtime.settings.model_copy(update={"sites": {"s": site}})
    key = load_key(site)
    job = build_definitions(settings, {"runtime": Runtime(settings)}).resolve_implicit_job_def_def_for_assets([key])
    assert job is not None
    today = day_of(site, SystemClock().now())
    with dg.DagsterInstance.ephemeral() as instance:
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        result = job.execute_in_process(
            run_config=quiet, instance=instance, partition_key=today, asset_selection=[key], raise_on_error=False
        )
        (event,) = [event for event in result.all_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data is not None
    return event.step_failure_data.user_failure_data.description or ""


def test_other_commands_on_a_full_disk(disk: SmallDisk, folder: Path, tmp_path: Path) -> None:
    place = disk.place
    place.load(folder)
    before, concepts = place.content(), _concepts(place)
    ((patient,),) = place.rows(
        "SELECT resource_id FROM row_source WHERE cdm_table = 'person' ORDER BY resource_id LIMIT 1"
    )
    (tmp_path / "patients").write_text(f"{patient}\n")
    erase = ("erase", "--site", "s", "--patient-file", tmp_path / "patients", "--yes")
    with disk.full():
        disk.fails(*erase)
    with disk.full(300_000):
        disk.fails("vocabulary", "load", VOCABULARY)
    with disk.full(300_000):
        place.terminal.run("lakehouse", "snapshot", "--to", tmp_path / "lake")  # it only reads
    assert (place.content(), _concepts(place)) == (before, concepts)
    place.terminal.run(*erase)
    assert place.rows(f"SELECT count(*) FROM row_source WHERE resource_id = '{patient}'") == [(0,)]
    place.assert_whole()


def test_the_disk_of_the_home_is_full(disk: SmallDisk, folder: Path) -> None:
    """What is written beside landing and staging: what exports held, and the concept index."""
    place, home = disk.place, disk.place.terminal.home
    (home / "seen").mkdir(exist_ok=True)
    with (
        _mounted(home / "seen", 4096),
        pytest.raises(LandingError, match=r"The members of an export cannot be written .No space left"),
    ):
        place.load(folder)
    with (
        _mounted(home / "vocabulary", 16_384),
        pytest.raises(LandingError, match="The concept index cannot be written"),
    ):
        place.load(folder)
    place.load(folder)
    place.assert_whole()


def _concepts(place: Place) -> list[tuple[object, ...]]:
    return place.rows("SELECT md5(string_agg(c::text, ' ' ORDER BY concept_id)) FROM vocab.concept AS c")


def test_the_server_goes_down_because_its_log_cannot_be_written(
    disk: SmallDisk, folder: Path, undisturbed: Content
) -> None:
    """In the middle of a publication another session fills the last segment of the write-ahead log: PANIC."""
    place = disk.place
    with place.runtime.connect() as connection:
        empty(connection)
    shutil.rmtree(place.runtime.settings.home / "seen", ignore_errors=True)
    url = EmbeddedServer(place.terminal.home).ensure_running()
    other = psycopg.connect(url)
    other.execute("LOCK TABLE cdm.measurement IN ACCESS EXCLUSIVE MODE")
    child = place.terminal.start("ingest", "--site", "s", "--from", folder)
    wait(lambda: waits_for_lock(other))
    with disk.full():
        with pytest.raises(psycopg.errors.DiskFull), psycopg.connect(url, autocommit=True) as panicking:
            panicking.execute(_NEW_SEGMENTS)
        ended = child.finish()
        assert (ended.code, "Traceback" in ended.err) == (74, False), ended.err
        assert "PostgreSQL failed in the middle of the work" in ended.err
        wait(lambda: EmbeddedServer(place.terminal.home).status().state == "stopped")
        again = disk.fails("ingest", "--site", "s", "--from", folder)
        assert "PostgreSQL ended instead of starting" in again.err
        assert f"The disk of {disk.folder.data} is full." in again.err
    other.close()
    place.load(folder)
    assert place.content() == undisturbed
    place.assert_whole()


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="a server's limits are set by the program prlimit")
def test_a_file_that_may_grow_no_more(database_url: str) -> None:
    """Quotas and limits: PostgreSQL tells them as internal errors."""
    with pytest.raises(
        WarehouseError, match=r"The disk of PostgreSQL is full: could not extend file .*: File too large"
    ):
        _make_large_table(database_url)


def _make_large_table(url: str) -> None:
    with server_errors(), connect(url) as connection:
        process = psutil.Process(connection.info.backend_pid)
        # Larger than a segment of the write-ahead log, which the server could not do without.
        limit = ("prlimit", "--pid", str(process.pid), f"--fsize={20 * _MEBIBYTE}:")
        account = {"user": process.uids().real, "group": process.gids().real} if os.geteuid() == 0 else {}
        subprocess.run(limit, check=True, **account)  # type: ignore[call-overload] # two of its many parameters
        connection.execute("CREATE UNLOGGED TABLE large AS SELECT repeat('x', 1800) FROM generate_series(1, 20000)")


def test_a_limit_of_the_server(database_url: str) -> None:
    with pytest.raises(WarehouseError, match="a limit of its own: temporary file size exceeds"):
        _sort_without_space(database_url)


def _sort_without_space(url: str) -> None:
    with server_errors(), connect(url) as connection:
        connection.execute("SET work_mem = '64kB'")
        connection.execute("SET temp_file_limit = 0")
        connection.execute(
            "SELECT count(*) FROM (SELECT FROM generate_series(1, 100000) AS n ORDER BY -n OFFSET 0) AS s"
        )
