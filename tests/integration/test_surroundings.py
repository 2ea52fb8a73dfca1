"""Every command where something around it is wrong: it ends with a message that helps, and never with a traceback.

The walk finds the commands by itself; `_ARGUMENTS` gives what one cannot do without.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import typer
from psycopg import sql

from pipeline.commands.cli import app
from pipeline.core.settings import MAPPINGS_FOLDER
from tests.command_line import CommandLine, Finished
from tests.databases import Prepared
from tests.integration.support import observation, patient

#: What a command must be given beside `--site`; a folder or file that is there is named by {folder} and {file}.
_ARGUMENTS = {
    "backup create": ["{folder}/backups"],
    "backup check": ["{folder}/backups"],
    "backup list": ["{folder}/backups"],
    "backup prune": ["{folder}/backups", "--keep", "1"],
    "restore": ["{folder}/backups"],
    "crawl": ["--patient", "p1"],
    "db grant": ["omop_reader", "nobody"],
    "export abandon": ["--group", "g"],
    "export forget": ["--export", "1"],
    "export retime": ["--export", "1"],
    "dead-letters show": ["1"],
    "dead-letters repair": ["{folder}/repaired", "--id", "1"],
    "erase": ["--patient", "p1", "--dry-run"],
    "explain": ["Patient/p1"],
    "ingest": ["--from", "{folder}"],
    "keys new": ["--out", "{folder}/key.pem"],
    "mappings show": ["Patient"],
    "psql": ["-c", "SELECT 1"],
    "lakehouse check": ["{folder}/lake"],
    "lakehouse snapshot": ["--to", "{folder}/lake"],
    "publish": ["--to", "{folder}/lake"],
    "sandbox generate": ["--patients", "1", "--out", "{folder}/sample"],
    "unmapped import": ["{file}"],
    "verify": ["--deep"],
    "view run": [str(MAPPINGS_FOLDER / "Patient.yaml"), "{file}"],
    "vocabulary load": [str(MAPPINGS_FOLDER / "demo_vocabulary")],
    "vocabulary lookup": ["http://loinc.org", "2160-0"],
    "vocabulary suggest": ["creatinine"],
    "vocabulary use": ["v5.0 GONE"],
}
#: They only read the database; what they refuse is about the folder.
_LAKEHOUSE = {"publish", "lakehouse snapshot", "lakehouse check"}
#: They run until they are stopped, start servers of their own, or need no surroundings; tests of their own look at them.
_SERVE = {"demo", "ui", "sandbox serve", "db serve", "db stop"}


def _walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(command, typer.core.TyperGroup):
        for name, below in sorted(command.commands.items()):
            yield from _walk(below, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(_walk(typer.main.get_command(app)))
TRIED = sorted(set(COMMANDS) - _SERVE)


def _line(name: str, folder: Path, site: str | None) -> list[str]:
    """The command with the arguments that it cannot do without."""
    own = [text.format(folder=folder, file=folder / "Patient.ndjson") for text in _ARGUMENTS.get(name, [])]
    site_parameter = next((item for item in COMMANDS[name].params if item.name == "site"), None)
    given: list[str] = []
    if site_parameter is not None and (site or site_parameter.required):
        value = site or "s"
        given = [value] if isinstance(site_parameter, typer.core.TyperArgument) else ["--site", value]
    return [*name.split(), *given, *own]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    (made / "Patient.ndjson").write_bytes(orjson.dumps(patient()))
    return made


@pytest.fixture
def bare(database_url: str, tmp_path: Path) -> CommandLine:
    """A new home and an empty database."""
    return CommandLine(_home(tmp_path), database_url)


@pytest.fixture(scope="module")
def standby(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A database in which every session is read-only from its beginning, as on a standby."""
    with demo_warehouse.copy() as url:
        _alter(url, "ALTER DATABASE {} SET default_transaction_read_only = on")
        yield CommandLine(tmp_path_factory.mktemp("home"), url)


@pytest.fixture(scope="module")
def powerless(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A user who may do no more than connect."""
    role = f"nobody_{os.getpid()}"
    with demo_warehouse.copy() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        _alter(url, f"ALTER ROLE CURRENT_USER IN DATABASE {{}} SET role = {role}")
        yield CommandLine(tmp_path_factory.mktemp("home"), url)
    with psycopg.connect(demo_warehouse.server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture(scope="module")
def sealed(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A home on a file system that is mounted read-only."""
    home = tmp_path_factory.mktemp("home")
    command = ("mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(home))
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        with demo_warehouse.copy() as url:
            yield CommandLine(home, url)
    finally:
        subprocess.run(("umount", "--lazy", str(home)), check=True)


def _home(parent: Path) -> Path:
    home = parent / "home"
    home.mkdir()
    return home


def _alter(url: str, statement: str) -> None:
    """Run a statement about the database, which `{}` stands for."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(connection.info.dbname)))


def _message(finished: Finished) -> str:
    """What went wrong, for a command that did not succeed: one message, and nothing that only we understand."""
    assert "defect of epic-omop" not in finished.err, finished.err
    assert finished.code in {0, 1, 2, 74, 75}, finished
    if finished.code in {74, 75}:
        assert "Error: " in finished.err, finished
    return " ".join(finished.err.split())


def _lacks_role(message: str) -> bool:
    """`db grant` looks at the roles first. They are the server's: another test may have dropped them."""
    return "There is no role" in message


@pytest.mark.deep
@pytest.mark.parametrize("name", TRIED)
def test_a_home_without_db_init(name: str, bare: CommandLine, folder: Path) -> None:
    finished = bare.run(*_line(name, folder, None), code=None)
    message = _message(finished)
    if finished.code == 74 and name != "lakehouse check":  # which looks at files alone
        assert "epic-omop db init" in message


@pytest.mark.parametrize("name", TRIED)
def test_a_database_that_takes_no_changes(name: str, standby: CommandLine, folder: Path) -> None:
    finished = standby.run(*_line(name, folder, None), code=None)
    message = _message(finished)
    if _lacks_role(message):
        return
    if finished.code == 74 and name not in _LAKEHOUSE:
        assert "takes no changes" in message
        assert "default_transaction_read_only" in message


@pytest.mark.parametrize("name", TRIED)
def test_a_database_user_without_rights(name: str, powerless: CommandLine, folder: Path) -> None:
    finished = powerless.run(*_line(name, folder, None), code=None)
    message = _message(finished)
    if finished.code == 74 and name != "lakehouse check":  # which looks at files alone
        assert "db grant" in message or "db init" in message


@pytest.mark.parametrize("name", TRIED)
def test_a_home_on_a_file_system_that_takes_no_changes(name: str, sealed: CommandLine, folder: Path) -> None:
    finished = sealed.run(*_line(name, folder, None), code=None)
    message = _message(finished)
    if _lacks_role(message):
        return
    if finished.code == 74 and name not in _LAKEHOUSE:
        assert re.search(r"[Rr]ead-only", message)
        assert "Make space" not in message


#: May begin a site, or ask nothing of what is known: see the tests below.
_NEW_SITES = {"ingest", "sandbox serve"}


@pytest.fixture(scope="module")
def north(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A warehouse that knows the site `north` from a folder, and `south` from sites.yaml."""
    home = tmp_path_factory.mktemp("home")
    (home / "sites.yaml").write_text("sites:\n  south: {time_zone: America/Chicago}\n")
    files = home / "files"
    files.mkdir()
    (files / "Patient.ndjson").write_bytes(orjson.dumps(patient()))
    (files / "Observation.ndjson").write_bytes(orjson.dumps(observation()))
    with demo_warehouse.copy() as url:
        terminal = CommandLine(home, url)
        terminal.run("ingest", "--site", "north", "--from", files)
        yield terminal


_WITH_SITE = [name for name in TRIED if any(item.name == "site" for item in COMMANDS[name].params)]


@pytest.mark.parametrize("name", [name for name in _WITH_SITE if name not in _NEW_SITES])
def test_a_typo_in_a_site_is_refused(name: str, north: CommandLine, folder: Path) -> None:
    finished = north.run(*_line(name, folder, "suoth"), code=2)
    assert "'suoth'" in finished.err
    assert "Did you mean 'south'?" in finished.err


def test_folders_of_a_new_site_need_a_word_where_it_looks_like_a_typo(north: CommandLine, folder: Path) -> None:
    for typo, known in (("nroth", "north"), ("soutth", "south")):
        refused = north.run("ingest", "--site", typo, "--from", folder, code=2)
        assert f"Did you mean '{known}'?" in refused.err
        assert "--new-site" in refused.err
    north.run("ingest", "--site", "nroth", "--from", folder, "--new-site")
    north.run("ingest", "--site", "elsewhere", "--from", folder)
