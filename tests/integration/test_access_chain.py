"""The chain of the access log: what `verify` sees of removed and changed entries, and which commands leave an entry."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from pipeline.core.clock import ManualClock
from pipeline.core.settings import Settings
from pipeline.warehouse.access_chain import ANCHOR_FILE, ChainState, check_chain
from pipeline.warehouse.access_looks import record_look
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine
from tests.databases import Prepared
from tests.integration.support import START, Warehouse, observation, patient

ENTRY = (
    "INSERT INTO etl.access_log (at, site, run_id, os_user, workflow, event, outcome)"
    " VALUES (now(), 's', 'r', 'u', 'w', 'read', 'ok')"
)


@pytest.fixture
def runtime(installed_database: Prepared, tmp_path: Path) -> Iterator[Runtime]:
    with installed_database.copy() as url:
        yield Runtime(Settings(home=tmp_path / "home", database_url=url), ManualClock(START))


def _add(runtime: Runtime, count: int) -> None:
    for number in range(count):
        record_look(runtime, "report", resources=number)


def _checked(runtime: Runtime) -> ChainState:
    with runtime.connect() as connection:
        return check_chain(connection, runtime.settings.home)


def _tamper(runtime: Runtime, *statements: str) -> None:
    """As a database owner who switches the triggers off."""
    with runtime.connect() as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        for statement in statements:
            connection.execute(statement)


def test_an_untouched_log_is_whole_with_many_writers_and_another_time_zone(runtime: Runtime) -> None:
    assert _checked(runtime).problems == ()

    def write(number: int) -> None:
        assert runtime.settings.database_url is not None
        with psycopg.connect(runtime.settings.database_url) as connection:
            connection.execute(f"SET TIME ZONE '{('UTC', 'Asia/Tokyo', 'America/Chicago')[number % 3]}'")
            connection.execute("SET DateStyle = 'German'")
            for _ in range(20):
                connection.execute(ENTRY)
                if number % 2:
                    connection.commit()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = _checked(runtime)
    assert (state.entries, state.problems) == (120, ())
    with runtime.connect() as connection:
        connection.execute("ALTER TABLE access_log ADD COLUMN of_a_later_release text")
    assert _checked(runtime).problems == (), "a column of a later release changes no hash"


def test_a_transaction_that_is_undone_leaves_no_link(runtime: Runtime) -> None:
    _add(runtime, 1)
    with runtime.connect() as connection:
        connection.execute(ENTRY)
        connection.rollback()
    _add(runtime, 1)
    assert (_checked(runtime).entries, _checked(runtime).problems) == (2, ())


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("DELETE FROM access_log WHERE id = 2", "1 entries were removed"),
        ("DELETE FROM access_log WHERE id = 4", "1 entries were removed"),
        ("UPDATE access_log SET os_user = 'another' WHERE id = 2", "1 entries"),
        ("UPDATE access_log SET at = at + interval '1 microsecond' WHERE id = 4", "1 entries"),
        ("UPDATE access_log SET export_id = 7 WHERE id = 1", "1 entries"),
        ("UPDATE access_link SET db_user = 'another' WHERE entry_id = 2", "1 entries"),
        ("DELETE FROM access_log WHERE id = 2; DELETE FROM access_link WHERE entry_id = 2", "1 links are missing"),
        ("DELETE FROM access_log WHERE id = 4; DELETE FROM access_link WHERE entry_id = 4", "the end of the chain"),
        ("DELETE FROM access_log WHERE id = 1; DELETE FROM access_link WHERE entry_id = 1", "1 links are missing"),
        (ENTRY, "1 entries were added outside the chain"),
        ("DELETE FROM access_log; DELETE FROM access_link", "the end of the chain"),
        ("DELETE FROM access_head", "the end of the chain"),
        ("TRUNCATE access_log", "4 entries were removed"),
    ],
)
def test_what_was_done_to_the_log_is_seen(runtime: Runtime, statement: str, found: str) -> None:
    _add(runtime, 4)
    assert _checked(runtime).problems == ()
    (runtime.settings.home / ANCHOR_FILE).unlink()  # the chain alone shows it
    _tamper(runtime, *statement.split("; "))
    assert any(problem.startswith(found) for problem in _checked(runtime).problems), _checked(runtime).problems
    assert not (runtime.settings.home / ANCHOR_FILE).exists(), "no anchor of what is not whole"


_FORGED_END = (
    "DELETE FROM access_log WHERE id > 2",
    "DELETE FROM access_link WHERE entry_id > 2",
    "UPDATE access_head SET position = 2, hash = (SELECT hash FROM access_link WHERE position = 2)",
)


def test_the_newest_entries_are_seen_to_be_gone_by_the_anchor_of_the_last_check(runtime: Runtime) -> None:
    _add(runtime, 4)
    assert _checked(runtime).problems == ()
    _tamper(runtime, *_FORGED_END)
    (problem,) = _checked(runtime).problems
    assert problem == "what was there at the last check (entry 4) is not there any more"
    _add(runtime, 4)  # what comes after hides nothing
    assert _checked(runtime).problems == (problem,)


def test_an_anchor_of_another_warehouse_says_nothing(runtime: Runtime) -> None:
    _add(runtime, 4)
    assert _checked(runtime).problems == ()
    _tamper(runtime, "UPDATE access_head SET chain_id = gen_random_uuid()", *_FORGED_END)
    assert _checked(runtime).problems == ()


def test_earlier_entries_are_chained_by_the_revision(runtime: Runtime) -> None:
    from alembic import command
    from alembic.config import Config

    from pipeline.warehouse import schema

    assert runtime.settings.database_url is not None
    with schema.transaction(runtime.settings.database_url) as connection:
        config = Config()
        config.set_main_option("script_location", str(schema._MIGRATIONS))
        config.attributes |= {"connection": connection, "etl_schema": "etl"}
        command.downgrade(config, "0013")
        for _ in range(3):
            connection.exec_driver_sql(ENTRY)
        command.upgrade(config, "head")
    _add(runtime, 1)
    assert (_checked(runtime).entries, _checked(runtime).problems) == (4, ())


def test_commands_that_show_or_take_away_leave_entries(
    demo_warehouse: Prepared, tmp_path: Path, make_psql: Callable[[Path], Path]
) -> None:
    home = tmp_path / "home"
    with demo_warehouse.copy(home) as url:
        warehouse = Warehouse(Runtime(Settings(home=home, database_url=url, workers=1), ManualClock(START)), tmp_path)
        warehouse.load({"Patient": [patient()], "Observation": [observation("x", valueQuantity={"value": "1"})]})
        letter = warehouse.value("SELECT id FROM dead_letter_open")
        terminal = CommandLine(home, url, {"PATH": f"{make_psql(tmp_path)}:{os.environ['PATH']}"})
        terminal.run("dead-letters", "show", str(letter))
        terminal.run("dead-letters", "show", str(letter), "--raw")
        terminal.run("report", "mapping", "--site", "one")
        terminal.run("lakehouse", "snapshot", "--to", home / "lake", "--with-lineage")
        terminal.run("psql", "--", "-c", "select 1")
        terminal.run("dead-letters", "list")
        rows = warehouse.rows("SELECT workflow, event, site, detail, export_id FROM access_log ORDER BY id")
        export = warehouse.value("SELECT max(export_id) FROM export_job")
        assert rows == [
            ("epic-omop dead-letters show", "dead letter", "one", "without its line", export),
            ("epic-omop dead-letters show", "dead letter", "one", "raw line", export),
            ("epic-omop report mapping", "report", "one", "mapping", None),
            ("epic-omop lakehouse snapshot", "snapshot", "*", "with lineage", None),
            ("epic-omop psql", "psql", "*", None, None),
        ]
        assert "checks hold" in terminal.run("verify").out
        _tamper(warehouse.runtime, "DELETE FROM access_log WHERE event = 'psql'")
        refused = terminal.run("verify", code=70)
        assert "the access log is whole: 1 1 entries were removed" in refused.out


@pytest.fixture
def make_psql() -> Callable[[Path], Path]:
    """A program of that name that does nothing: psql takes over the process."""

    def make(folder: Path) -> Path:
        place = folder / "bin"
        place.mkdir()
        (place / "psql").write_text("#!/bin/sh\nexit 0\n")
        (place / "psql").chmod(0o755)
        return place

    return make
