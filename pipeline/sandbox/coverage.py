"""The Coverage of one synthetic person: who pays, named in the ways that Epic has, and what the plan is called."""

from __future__ import annotations

from pipeline.sandbox.people import Person
from pipeline.sandbox.shapes import Resource, epic_id, reference

__all__ = ["coverage"]

_KINDS_OF_PAYER = "https://nahdo.org/sopt"


def coverage(person: Person) -> Resource:
    """By the person's number one of six ways of naming the payor."""
    made: Resource = {
        "resourceType": "Coverage",
        "id": epic_id(person.seed, "Coverage", person.index),
        "status": "active",
        "beneficiary": person.subject,
        **_paid_by(person),
    }
    if person.rng.random() < 0.9:
        made["period"] = {"start": f"{2018 + person.index % 6}-01-01"}
    return made


def _paid_by(person: Person) -> Resource:
    """`payor`, and `type` where the plan has a name or a kind."""
    number = person.index % len(person.directory.payers)
    name = person.directory.payer_name(number)
    payer = reference("Organization", person.directory.payers[number], name)
    medicare = {"system": _KINDS_OF_PAYER, "code": "1", "display": "Medicare"}
    ways: tuple[Resource, ...] = (
        {"payor": [payer], "type": {"text": "PPO"}},
        {"payor": [{"display": name}]},
        {"payor": [{"reference": payer["reference"]}], "type": {"text": "HMO Gold"}},
        {"payor": [person.subject], "type": {"text": "Self-pay"}},
        {"payor": [payer], "type": {"coding": [medicare], "text": "Medicare"}},
        {"payor": [person.subject, payer]},
    )
    return ways[person.index % len(ways)]
