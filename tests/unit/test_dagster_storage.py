"""Dagster's SQLite files: made by one process at a time, and mended where several made them at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import Settings, SiteSettings
from pipeline.orchestration.instance import prepare_instance
from pipeline.orchestration.switches import open_instance, read_switches, turn
from tests.unit.test_definitions import settings

_OPEN_BOTH_AT_ONCE = """
import sys, time
from pathlib import Path
import dagster
from pipeline.orchestration.switches import open_instance
from pipeline.core.settings import Settings
home, mine, other = map(Path, sys.argv[1:])
mine.touch()
until = time.monotonic() + 60
while not other.exists() and time.monotonic() < until:
    time.sleep(0.001)
with open_instance(Settings(home=home)) as instance:
    instance.all_instigator_state()
"""


def _revisions(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]


def test_processes_that_open_a_new_home_together_leave_one_revision(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "dagster").mkdir(parents=True)
    names = [tmp_path / "first", tmp_path / "second"]
    running = [
        subprocess.Popen([sys.executable, "-c", _OPEN_BOTH_AT_ONCE, str(home), str(mine), str(other)])
        for mine, other in (names, names[::-1])
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    for name in ("history/runs.db", "history/runs/index.db", "schedules/schedules.db"):
        assert len(_revisions(home / "dagster" / name)) == 1, name


@pytest.mark.parametrize("name", ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"])
def test_a_file_that_two_processes_made_is_mended_and_keeps_what_it_holds(tmp_path: Path, name: str) -> None:
    here = settings(tmp_path, SiteSettings(name="north"))
    site = here.site("north")
    with open_instance(here) as instance:
        turn(instance, site, on=True)
    file = here.home / "dagster" / name
    newest = _revisions(file)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO alembic_version VALUES ('5771160a95ad')")
    with open_instance(here) as instance:
        assert read_switches(instance, site).schedule
    assert _revisions(file) == newest


def test_a_storage_that_cannot_be_opened_is_told_without_what_the_library_says(tmp_path: Path) -> None:
    here = Settings(home=tmp_path / "home")
    file = prepare_instance(here) / "schedules" / "schedules.db"
    for old in file.parent.iterdir():
        old.unlink()
    file.write_bytes(b"this is no database, and long enough to be looked at as one" * 100)
    with pytest.raises(ConfigurationError, match=r"storage under .* cannot be opened") as caught:
        prepare_instance(here)
    assert "move the folder away" in (caught.value.advice or "")
    file.unlink()
    with dg.DagsterInstance.from_config(str(prepare_instance(here))) as instance:
        assert not instance.all_instigator_state()
