"""The `epic-omop` program as a child process, for tests that use it as a person in a terminal does."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

__all__ = ["Child", "CommandLine", "Finished", "killed", "limited"]

#: What a child need not import itself: the project, nearly all of it, and with it its libraries.
_PRELOADED = "tests.preloaded"
#: Modules that look at the terminal and its environment when they are imported: every child imports them itself.
_OWN = ("pipeline.commands",)
# Or numpy would start a thread for its linear algebra, which nothing here needs.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([_PRELOADED])

#: Runs `epic-omop` and kills itself before or after the so-and-so-many-th call of one of its functions, in any thread.
_KILLED = """
import importlib, itertools, os, signal, sys
import pipeline.commands.cli
where, when, number, first = sys.argv[1:5]
exec(first)
module, _, path = where.partition(":")
owner = importlib.import_module(module)
*parents, name = path.split(".")
for parent in parents:
    owner = getattr(owner, parent)
real, calls = getattr(owner, name), itertools.count(1)
def counted(*arguments, **named):
    mine = next(calls)
    if when == "before" and mine == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **named)
    if when == "after" and mine == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, counted)
sys.argv = ["epic-omop", *sys.argv[5:]]
pipeline.commands.cli.main()
"""

#: Runs the program so that it can write no file larger than so many bytes.
_LIMITED = """
import resource, sys
import pipeline.commands.cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["epic-omop", *sys.argv[2:]]
pipeline.commands.cli.main()
"""

#: No command of a small folder takes longer, also on a busy machine.
_TIMEOUT_SECONDS = 120


def killed(where: str, when: str = "before", number: int = 1, *, first: str = "") -> tuple[str, ...]:
    """The program that kills itself before or after the `number`-th call of `where` (`module:name`, or
    `module:Class.name`). `first` is code that it runs before anything else."""
    return (sys.executable, "-c", _KILLED, where, when, str(number), first)


def limited(largest_file: int) -> tuple[str, ...]:
    """The program that can write no file larger than so many bytes: a full disk."""
    return (sys.executable, "-c", _LIMITED, str(largest_file))


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

    def start(self, *arguments: str | Path, program: tuple[str, ...] = ()) -> Child:
        """Start a command and return at once; `program` is another way into it: an interpreter, `-c`, code, arguments."""
        return Child([*program, *map(str, arguments)] if program else ["epic-omop", *map(str, arguments)], self)

    def run(self, *arguments: str | Path, code: int | None = 0, program: tuple[str, ...] = ()) -> Finished:
        """Run a command to its end; it must end with `code` (None: any), and never with a traceback."""
        finished = self.start(*arguments, program=program).finish()
        assert "Traceback" not in finished.err, finished.err
        assert code is None or finished.code == code, f"{arguments} ended with {finished.code}: {finished.err}"
        return finished


class Child:
    """A command in a process of its own, forked from a server that has imported libraries and project and has run
    nothing: a tenth of a second instead of two seconds of imports."""

    def __init__(self, command: list[str], terminal: CommandLine) -> None:
        self.out, self.err = _Output(), _Output()
        ends = self.out.writer, self.err.writer
        environment, folder = terminal.environment, str(terminal.home)
        self._process = _SERVER.Process(target=_run, args=(command, environment, folder, *ends))
        self._process.start()
        for output in (self.out, self.err):
            output.start()

    @property
    def returncode(self) -> int | None:
        """The exit code; a negative one is the signal that ended it; None while it runs."""
        return self._process.exitcode

    def processes(self) -> list[psutil.Process]:
        """The processes that it has started and that are there."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def finish(self, seconds: float = _TIMEOUT_SECONDS) -> Finished:
        """Wait for its end and take what it wrote; one that hangs is killed and fails the test."""
        self._process.join(seconds)
        hangs = self._process.exitcode is None
        if hangs and self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGABRT)  # the program's fault handler writes where its threads are
            self._process.join(10)
            self.kill()
            self._process.join()
        written = Finished(self._process.exitcode or 0, self.out.whole(), self.err.whole())
        assert not hangs, f"it hung: {written}"
        return written


class _Output(threading.Thread):
    """Reads what a child writes, until nobody has the other end any more."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._reader, self.writer = _SERVER.Pipe(duplex=False)
        self._content = bytearray()
        self._grown = threading.Condition()

    def start(self) -> None:
        self.writer.close()  # the child has its own
        super().start()

    def run(self) -> None:
        while chunk := os.read(self._reader.fileno(), 65_536):
            with self._grown:
                self._content += chunk
                self._grown.notify_all()
        self._reader.close()

    def line(self, beginning: str) -> str:
        """The first line that begins so, as soon as it is there."""
        pattern = re.compile(rf"^{re.escape(beginning)}.*\n".encode(), re.MULTILINE)
        with self._grown:
            found = self._grown.wait_for(lambda: pattern.search(self._content), _TIMEOUT_SECONDS)
        assert found, f"no line begins with {beginning!r}: {bytes(self._content)!r}"
        return found[0].decode()

    def whole(self) -> str:
        self.join(_TIMEOUT_SECONDS)
        assert not self.is_alive(), "someone still has the output of a child that has ended"
        return self._content.decode()


def _run(command: list[str], environment: dict[str, str], folder: str, out: Connection, err: Connection) -> None:
    """In the child: what the interpreter does for the real program."""
    for number, connection in ((1, out), (2, err)):
        os.dup2(connection.fileno(), number)
        connection.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for module in [name for name in sys.modules if name.startswith(_OWN)]:
        del sys.modules[module]
    try:
        if command[1:2] == ["-c"]:
            sys.argv = command[1:2] + command[3:]
            exec(compile(command[2], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = command
            from pipeline.commands.start import main

            main()
    finally:
        atexit._run_exitfuncs()
