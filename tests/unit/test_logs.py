"""Log lines: their two forms, whom they name, and what they never say."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pipeline.commands.cli import _command_named
from pipeline.core.errors import ConfigurationError, LandingError
from pipeline.core.logs import FIELDS, configure_logging
from pipeline.core.settings import LogSettings, load_log_settings
from pipeline.core.workflow import current_workflow, working_as


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Loggers are the process's: what a test changes is put back."""
    root = logging.getLogger()
    before = root.level, [*root.handlers]
    levels = {name: logging.getLogger(name).level for name in ("pipeline", "omop_schema", "dagster", "httpx")}
    yield io.StringIO()
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_json_lines_hold_fields_and_name_the_workflow(stream: io.StringIO) -> None:
    configure_logging(LogSettings(level="INFO", format="json"), stream)
    with working_as("epic-omop export", "run-7"):
        fields = {"event": "file", "bytes": 17}
        logging.getLogger("pipeline.access").info("file: %s", "ok", extra={FIELDS: fields})
        logging.getLogger("pipeline.access").debug("not at this level")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert {**line, "time": ""} == {
        "time": "",
        "level": "INFO",
        "logger": "pipeline.access",
        "message": "file: ok",
        "workflow": "epic-omop export",
        "run_id": "run-7",
        "os_user": current_workflow().os_user,
        "event": "file",
        "bytes": 17,
    }
    assert line["time"].endswith("+00:00")


def failing() -> None:
    raise ValueError("Key (name)=(Anna Miller) already exists")


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_is_told_without_its_text(stream: io.StringIO, form: str) -> None:
    configure_logging(LogSettings(level="INFO", format=form), stream)  # type: ignore[arg-type]  # both are tested
    try:
        failing()
    except ValueError:
        logging.getLogger("pipeline.x").exception("It failed.")
    told = stream.getvalue()
    assert "builtins.ValueError" in told
    assert "in failing" in told
    assert "Miller" not in told
    assert (len(told.splitlines()) == 1) is (form == "json")


def full() -> None:
    raise LandingError("The disk is full.")


def test_our_own_errors_are_told_with_their_words(stream: io.StringIO) -> None:
    configure_logging(LogSettings(level="INFO", format="json"), stream)
    try:
        full()
    except LandingError:
        logging.getLogger("pipeline.x").exception("It failed.")
    assert "The disk is full." in json.loads(stream.getvalue())["exception"]


def test_libraries_are_heard_from_warnings_on(stream: io.StringIO) -> None:
    """At DEBUG they write queries with their values, headers with tokens."""
    configure_logging(LogSettings(level="DEBUG", format="text"), stream)
    configure_logging(LogSettings(level="DEBUG", format="text"), stream)
    for name in ("httpx", "httpcore.http11", "sqlalchemy.engine", "psycopg", "asyncio", "dagster"):
        logging.getLogger(name).debug("Authorization: Bearer secret")
    logging.getLogger("pipeline.x").debug("ours")
    assert stream.getvalue() == "DEBUG pipeline.x: ours\n"


@pytest.mark.parametrize("first", ["library", "ours"])
def test_a_library_that_sets_its_own_level_is_heard_from_warnings_on(stream: io.StringIO, first: str) -> None:
    """Dagster sets its logger to DEBUG whenever a run, or anyone, asks for `get_dagster_logger`."""
    if first == "ours":
        configure_logging(LogSettings(level="DEBUG", format="text"), stream)
    loggers = dg.get_dagster_logger(), logging.getLogger("dagster"), logging.getLogger("httpx")
    loggers[2].setLevel(logging.DEBUG)
    if first == "library":
        configure_logging(LogSettings(level="DEBUG", format="text"), stream)
    assert [logger.isEnabledFor(logging.DEBUG) for logger in loggers] == [True, True, True]
    for logger in loggers:
        logger.debug("Authorization: Bearer secret")
        logger.info("GET https://fhir.example/Patient/e1")
    loggers[0].warning("The run took long.")
    logging.getLogger("pipeline.x").debug("ours")
    assert stream.getvalue() == "WARNING dagster.builtin: The run took long.\nDEBUG pipeline.x: ours\n"


def test_settings_of_the_log() -> None:
    assert load_log_settings({}) == LogSettings(level="WARNING", format="text")
    chosen = load_log_settings({"EPIC_OMOP_LOG_LEVEL": "debug", "EPIC_OMOP_LOG_FORMAT": "JSON"})
    assert chosen == LogSettings(level="DEBUG", format="json")
    for name in ("EPIC_OMOP_LOG_LEVEL", "EPIC_OMOP_LOG_FORMAT"):
        with pytest.raises(ConfigurationError, match=name):
            load_log_settings({name: "loud"})


def test_a_workflow_ends_with_its_block() -> None:
    outside = current_workflow()
    assert outside.run_id.startswith("p-")
    with working_as("a job", "run-1") as inside:
        assert current_workflow() == inside
        with working_as("epic-omop crawl"):
            assert current_workflow().run_id == outside.run_id
        assert current_workflow() == inside
    assert current_workflow() == outside


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["export", "--site", "north"], "epic-omop export"),
        (["site", "check", "north"], "epic-omop site check"),
        (["keys", "check", "--site", "north"], "epic-omop keys check"),
        (["ingest", "/data/Anna Miller"], "epic-omop ingest"),
        (["--help"], "epic-omop"),
        ([], "epic-omop"),
    ],
)
def test_a_command_is_named_without_its_arguments(arguments: list[str], name: str) -> None:
    assert _command_named(arguments) == name


_CRASH_OF_A_PROCESS = """
import ctypes, multiprocessing
from pipeline.core.logs import configure_logging
from pipeline.core.settings import LogSettings
def crash():
    ctypes.string_at(0)
if __name__ == "__main__":
    configure_logging(LogSettings(level="WARNING", format="json"))
    if {of_worker}:
        worker = multiprocessing.get_context("spawn").Process(target=crash)
        worker.start()
        worker.join()
        raise SystemExit(0 if worker.exitcode == -11 else "the worker did not crash")
    crash()
"""


@pytest.mark.parametrize("of_worker", [False, True], ids=["own process", "spawned worker"])
def test_a_crash_in_c_shows_the_stack_in_the_log(tmp_path: Path, *, of_worker: bool) -> None:
    program = tmp_path / "program.py"  # a file, because a spawned process imports it
    program.write_text(_CRASH_OF_A_PROCESS.replace("{of_worker}", str(of_worker)))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == (0 if of_worker else -signal.SIGSEGV), done.stderr
    assert "Segmentation fault" in done.stderr
    assert "program.py" in done.stderr
    assert "in crash" in done.stderr
