"""Warehouses of earlier releases, made by their own code (`tests/released/make.py`), become warehouses of this one."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import psycopg
import pytest

from pipeline.warehouse.embedded.binaries import installed_binaries
from tests.command_line import CommandLine
from tests.databases import fresh_database
from tests.documented import commands_below
from tests.integration.support import observation, patient, write_folder
from tests.released.make import SAMPLE

RELEASED = sorted((Path(__file__).parents[1] / "released").glob("*.tar.xz"))
#: As ids that the database gives are not rows' content.
_COUNTS = (
    "SELECT (SELECT count(*) FROM cdm.person), (SELECT count(*) FROM cdm.visit_occurrence),"
    " (SELECT count(*) FROM cdm.measurement), (SELECT count(*) FROM etl.dead_letter_open),"
)
_ROWS = _COUNTS + " (SELECT string_agg(p::text, '' ORDER BY p) FROM cdm.person p)"


def _unpacked(archive: Path, folder: Path, url: str) -> CommandLine:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    psql = [installed_binaries().program("psql"), "-XqA", "--set=ON_ERROR_STOP=1", f"--dbname={url}", "-f"]
    subprocess.run([*psql, str(folder / "database.sql")], check=True, stdout=subprocess.DEVNULL)
    return CommandLine(folder / "home", url)


@pytest.mark.parametrize("archive", RELEASED, ids=lambda path: path.name.removesuffix(".tar.xz"))
def test_a_released_warehouse_is_upgraded(archive: Path, database_url: str, postgres_url: str, tmp_path: Path) -> None:
    old = _unpacked(archive, tmp_path, database_url)

    def rows() -> object:
        with psycopg.connect(database_url) as connection:
            return connection.execute(_ROWS).fetchone()

    before = rows()
    assert before[:4] == (2, 2, 2, 2)  # type: ignore[index]  # an archive without rows would show nothing
    said = [old.run(*command).out for command in commands_below("docs/backup.md", "Upgrade from an earlier release")]
    assert any("revision" in words for words in said)
    assert rows() == before
    with fresh_database(
        postgres_url
    ) as url:  # the backup was made before the upgrade, and is upgraded as it is restored
        (tmp_path / "restored").mkdir()
        restored = CommandLine(tmp_path / "restored", url)
        restored.run("restore", tmp_path / "backups")
        restored.run("verify")
        _load_another_night(restored, url, tmp_path / "night of restored")
    assert "already" in old.run("db", "upgrade").out
    old.run("db", "init")
    old.run("verify")
    old.run("remap", "--site", "one")
    old.run("verify")
    assert rows()[:4] == before[:4]  # type: ignore[index]
    _load_another_night(old, database_url, tmp_path / "night of upgraded")


def _load_another_night(line: CommandLine, url: str, folder: Path) -> None:
    """What was there, a new person and a new value; then the same again, of which nothing is new."""
    night = {
        **SAMPLE,
        "Patient": [*SAMPLE["Patient"], patient("p3")],  # for whom a line has waited since the release
        "Observation": [*SAMPLE["Observation"], observation("new", person="p2")],
    }
    write_folder(folder, night)
    line.run("ingest", "--site", "one", "--from", folder)
    with psycopg.connect(url) as connection:
        assert connection.execute(_ROWS).fetchone()[:4] == (3, 2, 4, 1)  # type: ignore[index]
    line.run("ingest", "--site", "one", "--from", folder)
    with psycopg.connect(url) as connection:
        last = connection.execute(
            "SELECT sum(lines), sum(unchanged), sum(rejected) FROM etl.file_account"
            " WHERE export_id = (SELECT max(export_id) FROM etl.file_account)"
        ).fetchone()
    assert last == (10, 9, 1)
    line.run("verify", "--deep", "--all")


def test_every_release_has_its_warehouse() -> None:
    tags = subprocess.run(("git", "tag"), cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if tags.returncode != 0 or not tags.stdout:
        pytest.skip("sources without tags")
    missing = set(tags.stdout.split()) - {path.name.removesuffix(".tar.xz") for path in RELEASED}
    assert missing == set(), "make them: python -m tests.released.make TAG"
