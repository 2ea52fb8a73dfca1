"""Types of which OMOP holds nothing, or which are excluded for a reason of their own; they are in exports all the same."""

from __future__ import annotations

from typing import Any

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.building import Way, of_person
from pipeline.sandbox.shapes import Resource, hl7_status, instant, plain_concept, reference

__all__ = ["ADMINISTRATION"]


def _adverse_event(person: Person) -> list[Resource]:
    reaction = plain_concept(code_book().of("allergy-reaction")[0])
    return [of_person(person, "AdverseEvent", "", actuality="actual", event=reaction, date=instant(person.lately))]


def _episode(person: Person) -> list[Resource]:
    period = {"start": instant(person.lately)}
    return [of_person(person, "EpisodeOfCare", "", status="active", type=[{"text": "Oncology"}], period=period)]


def _bill(person: Person, resource_type: str, **more: Any) -> list[Resource]:
    kind = hl7_status("claim-type", "professional")
    insurer = reference("Organization", person.directory.payers[0], person.directory.payer_name(0))
    provider = reference("Organization", person.directory.organizations[0])
    bill = of_person(
        person, resource_type, "", status="active", type=kind, use="claim", created=instant(person.lately), **more
    )
    return [bill | {"insurer": insurer, "provider": provider, "insurance": []}]


def _claim(person: Person) -> list[Resource]:
    return _bill(person, "Claim", priority={"coding": [{"code": "normal"}]})


def _explanation_of_benefit(person: Person) -> list[Resource]:
    return _bill(person, "ExplanationOfBenefit", outcome="partial")


def _flag(person: Person) -> list[Resource]:
    return [of_person(person, "Flag", "", status="active", code={"text": "Fall risk"})]


def _body_structure(person: Person) -> list[Resource]:
    return [of_person(person, "BodyStructure", "", active=True, location={"text": "Left forearm"})]


ADMINISTRATION: tuple[Way, ...] = (
    _adverse_event,
    _episode,
    _claim,
    _explanation_of_benefit,
    _flag,
    _body_structure,
)
