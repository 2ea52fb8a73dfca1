"""Who a synthetic person is: number, name, birth, death. What is written of the person is in other modules.

Names are plainly invented.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from random import Random

from pipeline.sandbox.directory import FAMILY_NAMES, GIVEN_NAMES, Directory
from pipeline.sandbox.shapes import DAY, Resource, epic_id, local_time, reference

__all__ = ["Person"]

_YEAR = 365.25 * DAY
#: Days before the world's first day on which what seldom comes was recorded: nobody is dead by then, or unborn.
_LATELY = 70


@dataclass(frozen=True)
class Person:
    """Who the patient is. `phone_version` counts the changes of the phone number so far."""

    seed: int
    index: int
    rng: Random
    directory: Directory
    now: int
    """Seconds since 1970 of the world's first day."""
    phone_version: int = 0

    @cached_property
    def id(self) -> str:
        return epic_id(self.seed, "Patient", self.index, long=self.index % 7 == 3)

    @cached_property
    def born(self) -> int:
        """Seconds since 1970, negative for most; between 1 and 95 years before the world's first day."""
        rng = Random(f"{self.seed}/{self.index}/born")  # noqa: S311 - a reproducible world, no secrets
        return int(self.now - (1 + 94 * rng.betavariate(1.6, 1.4)) * _YEAR)

    @cached_property
    def name(self) -> str:
        return f"{FAMILY_NAMES[self.index * 7 % len(FAMILY_NAMES)]}, {GIVEN_NAMES[self.index % len(GIVEN_NAMES)]}"

    @cached_property
    def subject(self) -> Resource:
        return reference("Patient", self.id, self.name)

    @property
    def dead(self) -> bool:
        return self.index % 25 == 9

    @property
    def lately(self) -> int:
        """Seconds since 1970 of a morning before the world's first day."""
        return local_time(self.now - _LATELY * DAY, 10, 0)

    @cached_property
    def relative(self) -> Resource | None:
        """The person's RelatedPerson; every fourth has one."""
        if self.index % 4 != 3:
            return None
        family = self.name.split(", ")[0]
        return reference("RelatedPerson", epic_id(self.seed, "RelatedPerson", self.index), f"{family}, Kin")
