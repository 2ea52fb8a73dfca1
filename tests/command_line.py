"""The installed `epic-omop` program as a child process, for tests that use it as a person in a terminal does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("epic-omop")

#: No command of a small folder takes longer, also on a busy machine.
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Finished:
    """What a command wrote and how it ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class CommandLine:
    """A terminal: an EPIC_OMOP_HOME and a database for every command that is run in it."""

    home: Path
    url: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the caller's own settings comes through."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EPIC_OMOP_")}
        own = {"EPIC_OMOP_HOME": str(self.home), "EPIC_OMOP_DATABASE_URL": self.url, "COLUMNS": "400", "NO_COLOR": "1"}
        return {**kept, **own, **self.variables}

    def start(self, *arguments: str | Path, program: tuple[str, ...] = (str(PROGRAM),)) -> subprocess.Popen[str]:
        """Start a command and return at once; `program` is another way into the same entry point."""
        return subprocess.Popen(
            [*program, *map(str, arguments)],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, code: int | None = 0, program: tuple[str, ...] = (str(PROGRAM),)) -> Finished:
        """Run a command to its end; it must end with `code` (None: any), and never with a traceback."""
        child = self.start(*arguments, program=program)
        finished = finish(child)
        assert "Traceback" not in finished.err, finished.err
        assert code is None or finished.code == code, f"{arguments} ended with {finished.code}: {finished.err}"
        return finished


def finish(child: subprocess.Popen[str]) -> Finished:
    """Wait for a child and take what it wrote; a child that hangs is killed and fails the test."""
    try:
        out, err = child.communicate(timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise
    return Finished(child.returncode, out, err)
