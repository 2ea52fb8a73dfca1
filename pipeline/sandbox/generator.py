"""A deterministic world of Epic-shaped synthetic patients, streamed as NDJSON lines.

The same patients, seed and first day give the same bytes on every machine. A later `day` of the same world gives
nearly the same lines: about 1 % are new or changed (visits, results that became final, phone numbers, a diagnosis
entered in error). What one person is and does is in `patients.py`, `visits.py` and `seldom`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from random import Random

import orjson

from pipeline.sandbox.broken import BROKEN_KINDS, broken_line, operation_outcome_line
from pipeline.sandbox.directory import Directory
from pipeline.sandbox.patients import person_resources
from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.rotation import seldom_resources
from pipeline.sandbox.shapes import DAY, Resource, local_time
from pipeline.sandbox.visit import Visit
from pipeline.sandbox.visits import visit_resources

__all__ = ["RESOURCE_TYPES", "World", "generate"]

RESOURCE_TYPES = (
    "Organization",
    "Location",
    "Practitioner",
    "PractitionerRole",
    "Medication",
    "Patient",
    "Coverage",
    "AllergyIntolerance",
    "Device",
    "CarePlan",
    "Goal",
    "Encounter",
    "Condition",
    "Observation",
    "DiagnosticReport",
    "Specimen",
    "MedicationRequest",
    "MedicationDispense",
    "MedicationAdministration",
    "Immunization",
    "Procedure",
    "DocumentReference",
    "FamilyMemberHistory",
    "MedicationStatement",
    "RelatedPerson",
    "AdverseEvent",
    "BodyStructure",
    "Claim",
    "EpisodeOfCare",
    "ExplanationOfBenefit",
    "Flag",
)

# A person changes in one way on the days when (index + day) modulo the period is a fixed number.
_VISIT_PERIOD = 25
_PHONE_PERIOD = 40
_ERROR_PERIOD = 60
_BROKEN_PERIOD = 80  # with about 50 lines a patient: 1 broken line in 4,000


@dataclass(frozen=True)
class World:
    """`first_day` anchors all dates: every visit of day 0 lies before it (or is planned)."""

    patients: int
    seed: int
    first_day: date

    @property
    def now(self) -> int:
        """Seconds since 1970 of the first day's UTC midnight."""
        day = self.first_day
        return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def generate(
    patients: int,
    seed: int,
    as_of: date,
    day: int = 0,
    *,
    types: Collection[str] = RESOURCE_TYPES,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[str, bytes]]:
    """(resource type of the file, NDJSON line without its line end) of the world that began on `as_of`, `day` days on.

    The type names the file that the line belongs to: a broken line and an OperationOutcome have it too. `share`
    (i, n) gives the i-th of n equal parts of the patients, with the resources that all patients share.
    Only one patient is kept in memory.
    """
    world = World(patients, seed, as_of)
    directory = Directory(seed, patients)
    chosen = frozenset(types)
    for resource_type, resource in directory.resources():
        if resource_type in chosen:
            yield resource_type, orjson.dumps(resource)
    if share[0] == 0 and "Condition" in chosen:
        yield "Condition", operation_outcome_line()
    for index in range(share[0], patients, share[1]):
        for resource_type, resource in _patient_resources(world, directory, index, day):
            if resource_type in chosen:
                yield resource_type, orjson.dumps(resource)
        if "Observation" in chosen:
            yield from (("Observation", line) for line in _broken_lines(_person(world, directory, index, 0)))


def _person(world: World, directory: Directory, index: int, day: int) -> Person:
    return Person(
        seed=world.seed,
        index=index,
        rng=Random(f"{world.seed}/{index}"),  # noqa: S311 - a reproducible world, no secrets
        directory=directory,
        now=world.now,
        phone_version=len(_change_days(index, day, _PHONE_PERIOD)),
    )


def _patient_resources(world: World, directory: Directory, index: int, day: int) -> Iterator[tuple[str, Resource]]:
    """All resources of one patient. What later days bring draws from generators of its own."""
    person = _person(world, directory, index, day)
    yield from person_resources(person)
    yield from seldom_resources(person)
    in_error = bool(_change_days(index, day, _ERROR_PERIOD))
    for number, start in enumerate(_visit_starts(person)):
        visit = Visit(person, person.rng, str(number), start, first_condition_in_error=in_error and number == 0)
        yield from visit_resources(visit)
    if person.dead:
        return
    for later in _change_days(index, day, _VISIT_PERIOD):
        rng = Random(f"{world.seed}/{index}/day {later}")  # noqa: S311 - as above
        start = local_time(world.now + (later - 1) * DAY, rng.choice([9, 11, 14, 20]), rng.randrange(60))
        status = "finished" if day > later else "in-progress"
        yield from visit_resources(Visit(person, rng, f"day {later}", start, status=status))


def _change_days(index: int, day: int, period: int) -> range:
    """The days from 1 to `day` on which the person changes: those where (index + day) is a multiple of the period."""
    return range(period - index % period, day + 1, period)


def _visit_starts(person: Person) -> list[int]:
    """Seconds since 1970, ascending; a log-normal number of visits in the last six years of the world."""
    rng = person.rng
    count = min(1 + int(rng.lognormvariate(1.2, 0.6)), 60)
    oldest = min(6 * 365, (person.now - person.born) // DAY)
    days = sorted((rng.randrange(70, oldest) for _ in range(count)), reverse=True)
    hours = rng.choices(range(24), _HOUR_WEIGHTS, k=count)
    return [
        local_time(person.now - days_ago * DAY, hour, rng.randrange(60))
        for days_ago, hour in zip(days, hours, strict=True)
    ]


#: Office hours mostly; evenings at the site are the next day in UTC.
_HOUR_WEIGHTS = (1, 1, 1, 1, 1, 1, 2, 6, 14, 16, 16, 12, 8, 14, 15, 13, 9, 6, 5, 4, 4, 3, 2, 1)


def _broken_lines(person: Person) -> Iterator[bytes]:
    """All kinds for the world's first patient, so that small worlds have them too; then one now and then."""
    if person.index == 0:
        yield from (broken_line(person, kind) for kind in BROKEN_KINDS)
    elif person.index % _BROKEN_PERIOD == 0:
        number = person.index // _BROKEN_PERIOD
        yield broken_line(person, BROKEN_KINDS[number % len(BROKEN_KINDS)])
