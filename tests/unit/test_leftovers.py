"""What a session leaves behind is found, named and ended: programs by their environment, servers by their home."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.leftovers import SESSION_VARIABLE, end_leftovers, find_leftovers

_WAITING = [sys.executable, "-c", "input()", "left behind"]


@pytest.mark.parametrize("known_by", ["environment", "arguments"])
def test_a_program_that_runs_on_is_named_and_killed(known_by: str) -> None:
    session = f"session-{uuid.uuid4().hex}"
    environment = {**os.environ, SESSION_VARIABLE: session} if known_by == "environment" else None
    words = [] if known_by == "environment" else [f"/tmp/{session}/home"]
    with subprocess.Popen([*_WAITING, *words], stdin=subprocess.PIPE, env=environment) as program:
        assert [process.pid for process in find_leftovers(session)] == [program.pid]
        (left,) = end_leftovers(session)
        assert left.startswith(f"{program.pid}: ")
        assert "left behind" in left
        assert program.wait(10) < 0
    assert find_leftovers(session) == []


def test_a_session_that_left_nothing() -> None:
    assert end_leftovers(f"session-{uuid.uuid4().hex}") == []


def test_a_server_belongs_to_the_home_that_its_folder_names(server_home: Path, postgres_url: str) -> None:
    """The session's own server, whose environment is empty, is found under the session's name."""
    assert postgres_url
    found = find_leftovers(os.environ[SESSION_VARIABLE])
    assert "postgres" in {Path(process.cmdline()[0]).name for process in found}
    assert server_home.name.startswith(os.environ[SESSION_VARIABLE])
