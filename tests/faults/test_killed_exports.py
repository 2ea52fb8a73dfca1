"""kill -9 at every step of an export: at every HTTP exchange, before and after its answer, and before every durable
write of the process. The steps are counted in a first, undisturbed run, so none can be left out.

After each: the same command again, the same landed bytes, one kick-off; only where nobody can know whether Epic has
seen the kick-off, the group rests until its window has passed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Literal

import orjson
import pytest
from starlette.requests import Request

from pipeline.core.errors import CooldownActive
from pipeline.warehouse.runtime import Runtime
from tests.faults.support import (
    FaultyEpic,
    FixedLines,
    Nursery,
    exported,
    is_file,
    jobs,
    landed_bytes,
    states,
)

TYPES = ("Patient", "Observation")
CONTENT = tuple(
    (kind, orjson.dumps({"resourceType": kind, "id": f"{kind}-{n}"}))
    for kind, count in (("Patient", 6), ("Observation", 3))
    for n in range(count)
)
FILES, LINES = 3, 9


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def homes(tmp_path: Path, installed_url: str) -> Iterator[FaultyEpic]:
    """Fresh sites, one after the other: each with its own home, server state and an empty warehouse."""

    def following() -> Iterator[FaultyEpic]:
        number = 0
        while True:
            number += 1
            epic = FaultyEpic(
                tmp_path / f"home-{number}",
                installed_url,
                FixedLines(CONTENT),
                TYPES,
                settings={"download_workers": 1},
                resources_per_file=4,
            )
            with epic.runtime().connect() as connection:
                connection.execute("TRUNCATE export_job, export_file, cool_down")
            yield epic

    return following()


class Killer:
    """Watches the server; kills the export's process at the `step`-th exchange (from 1; 0: never)."""

    def __init__(self, step: int, when: Literal["before", "after"]) -> None:
        self.exchanges: list[str] = []
        self._step = step
        self._when = when
        self._pid = 0
        self._known = threading.Event()

    def victim(self, pid: int) -> None:
        self._pid = pid
        self._known.set()

    def __call__(self, moment: str, request: Request) -> None:
        if self._step and len(self.exchanges) > self._step:  # the run after the kill
            return
        if moment == "before":
            self.exchanges.append(f"{request.method} {request.url.path}")
        if moment == self._when and len(self.exchanges) == self._step:
            self._known.wait()
            os.kill(self._pid, signal.SIGKILL)
            self._step = -1


def assert_run_again(epic: FaultyEpic, runtime: Runtime, whole: dict[str, bytes], *, at: str) -> None:
    """The same command again: whatever the process knew when it was killed, nothing is lost or fetched needlessly."""
    before = epic.kick_offs
    left = jobs(runtime)
    unknown = bool(left) and left[0].state == "requested"
    if unknown:
        with pytest.raises(CooldownActive):
            exported(runtime)
        assert epic.kick_offs == before, at
        epic.clock.sleep(25 * 3600)
    landed = exported(runtime)
    assert landed_bytes(landed) == whole, at
    assert runtime.landing.open("site_a", landed.export_id, verify=True) == landed
    assert not epic.sandbox.state.desk._state.jobs or unknown, f"{at}: deleted on the server"
    assert states(runtime) == (["landed", "failed"] if unknown else ["landed"]), at
    assert_accounted(runtime, landed.export_id)
    assert epic.kick_offs == before + (unknown or not before), at
    assert all(count <= 2 for count in files_fetched(epic).values()), at


def assert_accounted(runtime: Runtime, export_id: int) -> None:
    with runtime.connect() as connection:
        row = connection.execute(
            "SELECT count(*), sum(lines), count(DISTINCT file_number) FROM export_file WHERE export_id = %s",
            [export_id],
        ).fetchone()
    assert row == (FILES, LINES, FILES)


def files_fetched(epic: FaultyEpic) -> dict[str, int]:
    fetched = [line for line in epic.requests if line.startswith("GET") and is_file(line)]
    return {line: fetched.count(line) for line in fetched}


def undisturbed(epic: FaultyEpic, nursery: Nursery) -> tuple[list[str], int, dict[str, bytes]]:
    """What an export does when nothing happens to it: its exchanges, the number of its durable writes, what it lands."""
    killer = Killer(0, "before")
    with epic.serving(watch=killer) as runtime:
        nursery.start(epic, durable=True)
        assert nursery.ended() == 0
        exchanges = list(killer.exchanges)
        return exchanges, len((epic.home / "durable").read_text().split()), landed_bytes(exported(runtime))


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_exchange(
    homes: Iterator[FaultyEpic], nursery: Nursery, when: Literal["before", "after"]
) -> None:
    exchanges, _, whole = undisturbed(next(homes), nursery)
    assert [line.partition(" ")[0] for line in exchanges] == ["GET", "POST", *["GET"] * (3 + FILES), "DELETE"]
    assert len(whole) == FILES
    for step, exchange in enumerate(exchanges, start=1):
        epic, killer = next(homes), Killer(step, when)
        with epic.serving(watch=killer) as runtime:
            killer.victim(nursery.start(epic))
            assert nursery.ended() == -signal.SIGKILL
            assert_run_again(epic, runtime, whole, at=f"{when} the answer to {exchange}")


def test_killed_before_every_durable_write(homes: Iterator[FaultyEpic], nursery: Nursery) -> None:
    _, _, whole = undisturbed(next(homes), nursery)
    for number in count(1):
        epic = next(homes)
        with epic.serving() as runtime:
            nursery.start(epic, kill_at=number, durable=True)
            ended = nursery.ended()
            if ended == 0:  # it has fewer writes; how many hangs on the polls
                break
            assert ended == -signal.SIGKILL
            assert_run_again(epic, runtime, whole, at=f"before durable write {number}")
    assert number > 4 * FILES, "each file is synced and renamed, and has its note"


def test_two_schedulers_at_once_make_one_export(homes: Iterator[FaultyEpic], nursery: Nursery) -> None:
    epic = next(homes)
    with Nursery() as other, epic.serving() as runtime:
        nursery.start(epic)
        other.start(epic)
        assert (nursery.ended(), other.ended()) == (0, 0)
        assert epic.kick_offs == 1
        assert states(runtime) == ["landed"]
        assert set(files_fetched(epic).values()) == {1}
        (job,) = jobs(runtime)
        assert_accounted(runtime, job.export_id)
        assert runtime.landing.open("site_a", job.export_id, verify=True).lines == LINES
