"""Whose turn it is: each of the lists below gives one of its ways to a person, in the order of the persons' numbers."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.administration import ADMINISTRATION
from pipeline.sandbox.seldom.allergies import ALLERGIES
from pipeline.sandbox.seldom.deeds import DEEDS
from pipeline.sandbox.seldom.diagnoses import DIAGNOSES
from pipeline.sandbox.seldom.drugs import DRUGS
from pipeline.sandbox.seldom.results import RESULTS
from pipeline.sandbox.seldom.visits import VISITS, contradicted_death
from pipeline.sandbox.shapes import Resource

__all__ = ["EVERY_WAY", "seldom_resources"]

#: After so many persons the lists begin again: small worlds have every way, and large ones few of each.
_PERIOD = 40
_LISTS = (ADMINISTRATION, ALLERGIES, DEEDS, DIAGNOSES, DRUGS, RESULTS, VISITS)
#: A world of so many patients has every way.
EVERY_WAY = max(map(len, _LISTS))


def seldom_resources(person: Person) -> Iterator[tuple[str, Resource]]:
    """(resource type, resource) of the ways whose turn it is; nothing for most persons."""
    turn = person.index % _PERIOD
    for ways in _LISTS:
        if turn < len(ways):
            yield from ((resource["resourceType"], resource) for resource in ways[turn](person))
    yield from ((resource["resourceType"], resource) for resource in contradicted_death(person))
    if person.relative:
        yield "RelatedPerson", _related_person(person)


def _related_person(person: Person) -> Resource:
    assert person.relative is not None
    family, given = person.relative["display"].split(", ")
    return {
        "resourceType": "RelatedPerson",
        "id": person.relative["reference"].partition("/")[2],
        "active": True,
        "patient": person.subject,
        "relationship": [{"text": "Next of kin"}],
        "name": [{"use": "official", "family": family, "given": [given]}],
    }
