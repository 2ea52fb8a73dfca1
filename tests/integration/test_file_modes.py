"""Modes of everything in a home: its user's alone, whatever the umask, what made it first, and in which order."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipeline.core.private_files import make_private
from pipeline.core.settings import MAPPINGS_FOLDER
from tests.command_line import CommandLine

_WITH_UMASK = """
import os, sys
os.umask(int(sys.argv[1], 8))
sys.argv = ["epic-omop", *sys.argv[2:]]
import pipeline.commands.cli
pipeline.commands.cli.main()
"""


def _open_to_others(home: Path) -> list[str]:
    paths = [home, *home.rglob("*")]
    found = [(path, path.lstat().st_mode) for path in paths if not path.is_symlink()]
    return [f"{stat.filemode(mode)} {path.relative_to(home)}" for path, mode in found if mode & 0o077]


@pytest.mark.deep
@pytest.mark.parametrize("umask", ["000", "077"])
@pytest.mark.parametrize("dagster_first", [True, False], ids=["Dagster first", "load first"])
def test_everything_in_the_home_is_private(
    database_url: str, make_home: Callable[[], AbstractContextManager[Path]], umask: str, dagster_first: bool
) -> None:
    with make_home() as place:
        home = place / "home"
        home.mkdir()
        home.chmod(0o777)  # by hand, before anything else
        for name, content in (("sites.yaml", "sites: {}"), ("keys", None), ("dagster", None)):
            path = home / name
            path.mkdir() if content is None else path.write_text(content)
            path.chmod(0o777 if content is None else 0o666)
        (home / "keys" / "old.pem").write_text("-")
        (home / "keys" / "old.pem").chmod(0o644)
        terminal = CommandLine(home, database_url)
        program = (sys.executable, "-c", _WITH_UMASK, umask)
        load = [
            ("vocabulary", "load", MAPPINGS_FOLDER / "demo_vocabulary"),
            ("sandbox", "generate", "--patients", "2", "--out", home / "sample"),
            ("ingest", "--site", "sample", "--from", home / "sample"),
            ("lakehouse", "snapshot", "--to", home / "lake"),
        ]
        dagster = [("ui", "--only-prepare"), ("keys", "new", "--out", home / "keys" / "new.pem")]
        for command in (*dagster, *load) if dagster_first else (*load, *dagster):
            terminal.run(*command, program=program)
            assert _open_to_others(home) == []
        assert stat.S_IMODE(home.lstat().st_mode) == 0o700


@pytest.mark.deep
@pytest.mark.parametrize("umask", ["000", "077"])
def test_a_night_by_dagster_leaves_nothing_open(
    database_url: str, make_home: Callable[[], AbstractContextManager[Path]], umask: str
) -> None:
    with make_home() as home:
        terminal = CommandLine(home, database_url)
        terminal.run("demo", "--patients", "2", program=(sys.executable, "-c", _WITH_UMASK, umask))
        assert _open_to_others(home) == []
        assert list((home / "dagster").rglob("*.db"))


def test_what_is_not_ours_stays_as_it_is(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    for folder in (home, outside, home / "postgres"):
        folder.mkdir()
        folder.chmod(0o755)
    (outside / "file").write_text("-")
    (outside / "file").chmod(0o644)
    (home / "link").symlink_to(outside / "file")
    (home / "linked").symlink_to(outside)
    make_private(home)
    assert stat.S_IMODE((outside / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755
    assert stat.S_IMODE((home / "postgres").stat().st_mode) == 0o755
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    make_private(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    make_private(tmp_path / "missing")
