"""Whatever was killed in any night, the warehouse ends as a fresh load of the last state makes it, links included.

A short history in every run of the suite; `make test-deep` runs long ones. A failure names seed, night and step:
`pytest tests/faults/test_random_nights.py --fault-seed 7 --fault-nights 50 --fault-kills 60` runs that history again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from pipeline.core.identifier_secret import SECRET_FILE
from tests.command_line import CommandLine
from tests.conftest import temporary_home
from tests.databases import Prepared
from tests.faults.places import VOCABULARY, Place
from tests.faults.random_nights import SITE, RandomNights, World, random_kill
from tests.integration.support import write_folder
from tests.warehouse_content import Content, differences, linked_content

#: From how many nights on the place has a server of its own, which is killed as well, and the world is larger.
_LONG = 10
#: After so many nights a long history is compared as at its end.
_COMPARED = 10


@dataclass(frozen=True)
class History:
    """Which history is run."""

    seed: int
    nights: int
    kills: int

    @property
    def is_long(self) -> bool:
        return self.nights >= _LONG


@pytest.fixture
def history(request: pytest.FixtureRequest) -> History:
    option = request.config.getoption
    return History(option("--fault-seed"), option("--fault-nights"), option("--fault-kills"))


@contextmanager
def _place(history: History, prepared: Prepared, folder: Path) -> Iterator[Place]:
    terminal = CommandLine(folder / "home", "", {"EPIC_OMOP_WORKERS": "2"})
    if not history.is_long:
        with prepared.copy(terminal.home) as url:
            yield Place(CommandLine(terminal.home, url, terminal.variables))
        return
    with temporary_home() as home:
        place = Place(CommandLine(home, "", terminal.variables))
        place.terminal.run("vocabulary", "load", VOCABULARY)
        yield place


def _fresh(world: World, like: Place, prepared: Prepared, folder: Path) -> Content:
    """The content of an empty warehouse after one load of what should be there."""
    write_folder(folder, world.last_state())
    with prepared.copy(folder / "home") as url:
        place = Place(CommandLine(folder / "home", url))
        shutil.copy(like.terminal.home / SECRET_FILE, place.terminal.home)  # links by identifier wait under its keys
        place.load(folder, SITE)
        with place.runtime.connect() as connection:
            return linked_content(connection)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("vanished", ["delete", pytest.param("keep", marks=pytest.mark.deep)])
def test_random_nights_and_kills_end_as_a_fresh_load(
    history: History, vanished: str, demo_warehouse: Prepared, tmp_path: Path
) -> None:
    random = Random(f"{history.seed} {vanished}")
    scale = (
        {"linked": 6, "stand_ins": 4, "medications": 4, "patients": 4}
        if history.is_long
        else {"linked": 2, "stand_ins": 1, "medications": 1, "patients": 0}
    )
    world = World(random, vanished_stay=vanished == "keep", **scale)
    with _place(history, demo_warehouse, tmp_path) as place:
        nights = RandomNights(place, world, tmp_path)
        nights.register(vanished=vanished)
        for night in range(1, history.nights + 1):
            # A kill that meets nothing does not count: what is left is spread over the nights to come.
            share = (history.kills - nights.kills) / (history.nights - night + 1)
            wished = int(share) + (random.random() < share % 1)
            nights.run_night([random_kill(random, server=history.is_long) for _ in range(wished)])
            if night % _COMPARED == 0 or night == history.nights:
                fresh = _fresh(world, place, demo_warehouse, tmp_path / f"fresh-{night}")
                with place.runtime.connect() as connection:
                    found = differences(linked_content(connection), fresh)
                assert not found, "\n".join([f"{history}, night {night}", *found, *nights.steps, world.describe()])
                nights.command("verify", "--files", "--deep", "--all")
        print(f"{history}, {vanished}: equal after {nights.kills} kills")
        assert nights.kills or not history.kills
