"""A program that forks a process for each order on its standard input, and says how it ended; see `support.Nursery`.

It runs nothing and has imported what an export needs, so that forking is safe and quick.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from pipeline.core.errors import EpicOmopError
from pipeline.core.settings import load_settings
from pipeline.extract import bulk
from pipeline.warehouse.runtime import Runtime


class ShiftedClock:
    """The clock of the test that gave the order; waits cost nothing here too."""

    def __init__(self, shift: float) -> None:
        self._shift = timedelta(seconds=shift)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._shift

    def sleep(self, seconds: float) -> None:
        self._shift += timedelta(seconds=seconds)


class DurableWrites:
    """Counts the calls that make something last (of one name, or all), and kills the process before one of them.

    The name is that of the call; `note` is the replacement of the note of how far a file is.
    """

    def __init__(self, kill_at: int, of: str | None = None) -> None:
        self.names: list[str] = []
        self._kill_at = kill_at
        self._of = of
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (psycopg.Connection, "commit")):
            setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            is_note = name == "replace" and str(arguments[1]).endswith(".part.json")
            self.names.append("note" if is_note else name)
            counts = len(self.names) if self._of is None else self.names.count(self._of)
            if counts == self._kill_at and self.names[-1] == (self._of or self.names[-1]):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        return counted


def export(order: dict[str, Any]) -> int:
    """Export the site to its end; returns the exit code, as the command has it."""
    if order["largest_file"]:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], hard))
    settings = load_settings(order["environment"])
    runtime = Runtime(settings, ShiftedClock(order["shift"]))
    writes = DurableWrites(order["kill_at"], order["of"]) if order["durable"] else None
    try:
        bulk.export_site(runtime, settings.site("site_a"))
    except EpicOmopError as error:
        return error.exit_code
    if writes:
        (settings.home / "durable").write_text(" ".join(writes.names))
    return 0


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(export(json.loads(line)))
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
