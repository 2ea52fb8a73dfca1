"""Random nights under random kills: a site's history from one seed, run through the real program.

The world of each night, the kills and where they are meant to strike come from the seed alone; what a kill meets at a
moment of the clock depends on the machine. What must hold afterwards is in `test_random_nights.py`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import orjson
import psutil

from pipeline.core.clock import SystemClock
from pipeline.core.settings import register_site
from pipeline.sandbox.generator import generate
from pipeline.warehouse.embedded.folder import find_server_folder
from tests.command_line import Child, killed
from tests.faults.places import KillPoint, Place
from tests.integration import linked_world, medication_world, stand_in_world
from tests.integration.support import Lines, write_folder

__all__ = ["SITE", "Kill", "RandomNights", "World", "random_kill"]

SITE = "s"
_FIRST_DAY = date(2026, 1, 1)

# --- the world --------------------------------------------------------------------------------------------------------

#: Version of each resource of a world; what is not there has none.
State = dict[str, str]


@dataclass
class _Part:
    """One small world of references, from night to night. `kind`: a module with TYPES, RANDOM and `files_of`."""

    kind: ModuleType
    name: str
    held: State = field(default_factory=dict)
    #: What the warehouse should have: of each resource its last version that could be loaded.
    left: State = field(default_factory=dict)
    #: Of each resource the last version that could be loaded, also of those that are not there any more.
    good: State = field(default_factory=dict)

    def next_night(self, random: Random, stay: Callable[[str], bool]) -> None:
        """`stay`: whether what an export lacks of a type stays where it is."""
        possible: Mapping[str, Sequence[str]] = self.kind.RANDOM
        names = list(possible)
        # A first night, and sometimes a later one, is any state; else a few resources change.
        changed = names if not self.held or random.random() < 0.05 else random.sample(names, random.randint(0, 5))
        for name in changed:
            version = random.choice((*possible[name], *(["A"] if "A" in possible[name] else [])))
            self.held.pop(name, None)
            if version != "-":
                self.held[name] = version
        self.good |= {name: version for name, version in self.held.items() if version != "Z"}
        stays = {name: version for name, version in self.left.items() if stay(self.kind.TYPES[name])}
        # A line that is rejected is a line: its resource is there, also again, in the last version that could be loaded.
        there = {name: self.good[name] for name in self.held if name in self.good}
        self.left = stays | there

    def last_state(self) -> State:
        if self.kind is linked_world:  # events of a person who is not there are not there
            return linked_world.last_state([self.left], vanished_stay=True)
        return self.left


class World:
    """What the site holds on each night. `vanished_stay`: the site's policy for what an export does not hold any more."""

    def __init__(
        self, random: Random, *, vanished_stay: bool, linked: int, stand_ins: int, medications: int, patients: int
    ) -> None:
        self._random = random
        self._vanished_stay = vanished_stay
        self._parts = [_Part(linked_world, f"w{number}") for number in range(linked)]
        self._parts += [_Part(stand_in_world, f"v{number}") for number in range(stand_ins)]
        self._parts += [_Part(medication_world, f"u{number}") for number in range(medications)]
        self._patients = patients
        self._day = 0
        self._generated: dict[tuple[str, str], bytes] = {}

    def next_night(self) -> dict[str, Lines]:
        """Type → the lines of the next export, in random order.

        Of a type with a line that does not say whose it is nothing vanishes: it may be of what is missing.
        """
        self._day += self._random.choice((0, 1, 1, 1, 7, 30))
        generated = list(generate(self._patients, 1, _FIRST_DAY, self._day)) if self._patients else []
        unnamed = {kind for kind, line in generated if _id(line) is None}
        for part in self._parts:
            part.next_night(self._random, lambda kind: self._vanished_stay or kind in unnamed)
        known = {
            (kind, name): line
            for (kind, name), line in self._generated.items()
            if self._vanished_stay or (kind in unnamed and not name.startswith("-"))
        }
        self._generated = known | {
            (kind, _id(line) or f"-{place}"): line for place, (kind, line) in enumerate(generated)
        }
        return self._files({id(part): part.held for part in self._parts}, generated)

    def last_state(self) -> dict[str, Lines]:
        """Type → the lines of one export that holds what should be in the warehouse now."""
        lines = [(kind, line) for (kind, _), line in self._generated.items()]
        return self._files({id(part): part.last_state() for part in self._parts}, lines)

    def describe(self) -> str:
        """What the parts hold tonight, to repeat a failure by hand."""
        return "\n".join(f"{part.name}: {' '.join(map(':'.join, part.held.items()))}" for part in self._parts)

    def _files(self, states: Mapping[int, State], generated: Sequence[tuple[str, bytes]]) -> dict[str, Lines]:
        files: dict[str, list[Mapping[str, Any] | bytes]] = {kind: [] for kind in TYPES}
        for part in self._parts:
            for kind, resources in part.kind.files_of({part.name: states[id(part)]}).items():
                files[kind] += resources
        for kind, line in generated:
            files.setdefault(kind, []).append(line)
        for lines in files.values():
            self._random.shuffle(lines)
        return {**files}


#: Types of which every export has a file.
TYPES = tuple(
    dict.fromkeys(kind for world in (linked_world, stand_in_world, medication_world) for kind in world.TYPES.values())
)


def _id(line: bytes) -> str | None:
    """None: no resource that could be told apart from another, such as half a line."""
    try:
        return orjson.loads(line).get("id")
    except orjson.JSONDecodeError:
        return None


# --- kills ------------------------------------------------------------------------------------------------------------

#: Function → up to which of its calls a run of a night may be killed.
_CALLS: dict[str, int] = {
    "os:fsync": 60,
    "os:replace": 40,
    "psycopg:Connection.execute": 400,
    "psycopg:Connection.commit": 30,
    KillPoint.ROWS_COPIED: 60,
    KillPoint.FILE_LANDED: 15,
    KillPoint.LANDED_SAVED: 1,
    KillPoint.CHUNK_COMPARED: 4,
    KillPoint.PUBLISHED: 3,
    KillPoint.MEMBERS_WRITTEN: 1,
    KillPoint.RECORDED: 2,
    KillPoint.DEPENDENTS_READ: 1,
    KillPoint.LETTERS_FOUND: 1,
    KillPoint.REPLAY_LANDED: 1,
}
#: No run of a night calls it so often: a program that is not killed by a call.
_NO_CALL = (KillPoint.PUBLISHED, "before", 10**9)
#: As a load of many gigabytes is done: worker processes, several chunks, first loads without indices.
_AS_IF_LARGE = """
import pipeline.warehouse.runtime
import pipeline.publication.steps.bulk as bulk
sizes = pipeline.warehouse.runtime.Runtime.sizes
object.__setattr__(sizes, "in_process", 0)
object.__setattr__(sizes, "chunk", 20_000)
bulk._BULK_ROWS = 1
"""


@dataclass(frozen=True)
class Kill:
    """One kill −9. `who`: the program at a call, or at a moment; a worker; the server. `share`: which part of the time
    of an undisturbed run has passed."""

    who: str
    call: tuple[str, str, int] = _NO_CALL
    share: float = 0.0

    def __str__(self) -> str:
        where, when, number = self.call
        return f"call {number} of {where}, {when}" if self.who == "call" else f"{self.who} at {self.share:.2f}"


def random_kill(random: Random, *, server: bool) -> Kill:
    """`server`: the home's embedded server may be killed as well."""
    who = random.choices(("call", "moment", "worker", "server"), (5, 4, 2, 2 if server else 0))[0]
    if who != "call":
        return Kill(who, share=random.random())
    where, most = random.choice(list(_CALLS.items()))
    return Kill(who, (where, random.choice(("before", "after")), random.randint(1, most)))


# --- nights -----------------------------------------------------------------------------------------------------------

#: A worker that was killed has its chunks run alone, in new processes: minutes on a machine that is busy.
_TIMEOUT_SECONDS = 300
_PATIENCE_SECONDS = 60


@dataclass
class RandomNights:
    """The history of one site in one place."""

    place: Place
    world: World
    folder: Path
    #: Kills that struck, and what was done, in order.
    kills: int = 0
    steps: list[str] = field(default_factory=list)
    _night: int = 0
    _seconds: float = 2.0

    def register(self, *, vanished: str) -> None:
        entry = {"vanished": vanished, "left_group": vanished, "empty_when_missing": list(TYPES)}
        register_site(self.place.terminal.home, SITE, entry)

    def run_night(self, kills: Sequence[Kill]) -> None:
        """Export, load under these kills, one after the other, and run the same command again until it is done."""
        self._night += 1
        folder = self.folder / f"night-{self._night}"
        write_folder(folder, self.world.next_night())
        command = ("ingest", "--site", SITE, "--from", folder, "--group", "g", "--complete", "--confirm")
        with self._telling():
            for kill in kills:
                self._disturb(command, kill)
            self._finish(command)
            self.place.assert_whole()
            self._assert_no_process_left()

    def command(self, *arguments: str) -> None:
        """Another command of the program, undisturbed; it must succeed."""
        with self._telling():
            ended = self.place.terminal.start(*arguments).finish(_TIMEOUT_SECONDS)
            assert ended.code == 0, f"{arguments} ended with {ended.code}: {ended.out} {ended.err}"

    def _disturb(self, command: Sequence[str | Path], kill: Kill) -> None:
        large = _AS_IF_LARGE if kill.who == "worker" or kill.call[2] % 3 == 0 else ""
        child = self.place.terminal.start(*command, program=killed(*kill.call, first=large))
        victim = self._strike(child, kill)
        ended = child.finish(_TIMEOUT_SECONDS)
        self._note(f"{kill}{' as if large' if large else ''}: ended with {ended.code}")
        assert "Traceback" not in ended.err, ended.err
        allowed = {"call": {0, -signal.SIGKILL}, "moment": {0, -signal.SIGKILL}}.get(
            kill.who, {0, 70, 74, 75}
        )  # 70: the processes cannot start
        assert ended.code in allowed, f"{kill}: ended with {ended.code}: {ended.err}"
        self.kills += victim or ended.code == -signal.SIGKILL

    def _strike(self, child: Child, kill: Kill) -> bool:
        """Kill what is to be killed at a moment; whether it was there."""
        if kill.who == "call":
            return False
        clock = SystemClock()
        clock.sleep(kill.share * self._seconds)
        if kill.who == "moment":
            alive = child.returncode is None
            child.kill()
            return alive
        if kill.who == "worker":
            return _kill_a_worker(child)
        server = find_server_folder(self.place.terminal.home)
        postmaster = server.postmaster() if server is not None else None
        if postmaster is None:
            return False
        postmaster.kill()
        return True

    def _finish(self, command: Sequence[str | Path]) -> None:
        """The same command again. Another may still be seen at work for a moment after it was killed: then once more."""
        clock = SystemClock()
        started = clock.now()
        for _ in range(20):
            ended = self.place.terminal.start(*command).finish(_TIMEOUT_SECONDS)
            assert "Traceback" not in ended.err, ended.err
            self._note(f"run: ended with {ended.code}")
            if ended.code != 75:
                break
            clock.sleep(1)
        assert ended.code == 0, f"it does not go on: {ended.code}: {ended.err}"
        self._seconds = (clock.now() - started).total_seconds()

    def _assert_no_process_left(self) -> None:
        clock = SystemClock()
        for _ in range(_PATIENCE_SECONDS * 10):
            left = list(_processes_of(self.place.terminal.home))
            if not left:
                return
            clock.sleep(0.1)
        raise AssertionError(f"processes of killed programs are left: {left}")

    def _note(self, step: str) -> None:
        self.steps.append(f"night {self._night}: {step}")
        print(self.steps[-1], flush=True)  # pytest shows it when the test fails, and at once with -s

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """A failure says where in the history it happened, and what the world held."""
        try:
            yield
        except BaseException as error:
            error.add_note("\n".join([*self.steps[-20:], f"world of night {self._night}:", self.world.describe()]))
            raise


def _kill_a_worker(child: Child) -> bool:
    """The first that is there from now on, if there is one before the program has ended."""
    clock = SystemClock()
    while child.returncode is None:
        for process in child.processes():
            if "spawn_main" in " ".join(_command(process)) and "--multiprocessing-fork" in _command(process):
                process.kill()
                return True
        clock.sleep(0.02)
    return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _processes_of(home: Path) -> Iterator[psutil.Process]:
    """Programs of this home that run, the server apart."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            works = process.name() != "postgres" and process.status() != psutil.STATUS_ZOMBIE
            if works and process.pid != os.getpid() and process.environ().get("EPIC_OMOP_HOME") == str(home):
                yield process
