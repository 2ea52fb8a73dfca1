"""Warehouses of earlier releases, made by their own code (`tests/released/make.py`), become warehouses of this one."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import psycopg
import pytest

from pipeline.warehouse.embedded.binaries import installed_binaries
from tests.command_line import CommandLine

RELEASED = sorted((Path(__file__).parents[1] / "released").glob("*.tar.xz"))
#: As ids that the database gives are not rows' content.
_COUNTS = "SELECT (SELECT count(*) FROM cdm.person), (SELECT count(*) FROM cdm.measurement),"
_ROWS = (
    _COUNTS
    + " (SELECT count(*) FROM etl.dead_letter_open), (SELECT string_agg(p::text, '' ORDER BY p) FROM cdm.person p)"
)


def _unpacked(archive: Path, folder: Path, url: str) -> CommandLine:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    psql = [installed_binaries().program("psql"), "-XqA", "--set=ON_ERROR_STOP=1", f"--dbname={url}", "-f"]
    subprocess.run([*psql, str(folder / "database.sql")], check=True, stdout=subprocess.DEVNULL)
    return CommandLine(folder / "home", url)


@pytest.mark.parametrize("archive", RELEASED, ids=lambda path: path.name.removesuffix(".tar.xz"))
def test_a_released_warehouse_is_upgraded(archive: Path, database_url: str, tmp_path: Path) -> None:
    old = _unpacked(archive, tmp_path, database_url)

    def rows() -> object:
        with psycopg.connect(database_url) as connection:
            return connection.execute(_ROWS).fetchone()

    before = rows()
    old.run("backup", tmp_path / "backups")
    assert "revision" in old.run("db", "upgrade").out
    assert rows() == before
    assert "already" in old.run("db", "upgrade").out
    old.run("db", "init")
    old.run("verify")
    old.run("remap", "--site", "one")
    old.run("verify")
    assert rows()[:3] == before[:3]  # type: ignore[index]


def test_every_release_has_its_warehouse() -> None:
    tags = subprocess.run(("git", "tag"), cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if tags.returncode != 0 or not tags.stdout:
        pytest.skip("sources without tags")
    missing = set(tags.stdout.split()) - {path.name.removesuffix(".tar.xz") for path in RELEASED}
    assert missing == set(), "make them: python -m tests.released.make TAG"
