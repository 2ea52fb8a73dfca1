"""Processes that a test session leaves behind. Each inherits the session's name in its environment; a PostgreSQL server,
whose environment is empty, is known by the home that it belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.core.clock import SystemClock

__all__ = ["SESSION_VARIABLE", "end_leftovers", "find_leftovers"]

#: Not EPIC_OMOP_…: those are taken out of the environment of programs that tests start.
SESSION_VARIABLE = "TEST_SESSION_OF_EPIC_OMOP"
#: Programs whose starter has just ended notice it in this time.
_SECONDS, _PAUSE = 10.0, 0.2


def find_leftovers(session: str) -> list[psutil.Process]:
    """Processes of the session `session`, this one apart."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _belongs(process, session)]


def end_leftovers(session: str) -> list[str]:
    """What of the session runs still after some seconds, as text for people. It is killed."""
    for _ in range(int(_SECONDS / _PAUSE)):
        if not find_leftovers(session):
            return []
        SystemClock().sleep(_PAUSE)
    return list(_killed(find_leftovers(session)))


def _killed(processes: list[psutil.Process]) -> Iterator[str]:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            yield f"{process.pid}: {' '.join(process.cmdline())[:200]}"
            process.kill()


def _belongs(process: psutil.Process, session: str) -> bool:
    with suppress(psutil.Error, OSError):
        command = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE or not command or _is_own_helper(process, command):
            return False
        named = [*process.environ().values(), *command, *_home_of_server(command)]
        return any(session in text for text in named)
    return False


def _is_own_helper(process: psutil.Process, command: list[str]) -> bool:
    """Servers of `multiprocessing`, which end with the process that started them: this one, without xdist."""
    return process.ppid() == os.getpid() and any("from multiprocessing." in word for word in command)


def _home_of_server(command: list[str]) -> Iterator[str]:
    """The home that a PostgreSQL server of root's belongs to: its folder has the path in the file `home`."""
    if Path(command[0]).name == "postgres" and "-D" in command[:-1]:
        with suppress(OSError):
            yield (Path(command[command.index("-D") + 1]).parent / "home").read_text()
