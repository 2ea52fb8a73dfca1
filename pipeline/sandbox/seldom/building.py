"""Building what seldom comes: resources of a person with ids by name, and observations, visits and orders in short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.people import Person
from pipeline.sandbox.shapes import Resource, epic_id, hl7_status, instant, plain_concept

__all__ = ["ACT_CODE", "Way", "condition", "id_of", "observation", "of_person", "order", "reporter", "visit"]

#: What a person in turn has: resources with their `resourceType`.
Way = Callable[[Person], Sequence[Resource]]

_PATIENT = {
    "AllergyIntolerance",
    "BodyStructure",
    "Claim",
    "Device",
    "EpisodeOfCare",
    "ExplanationOfBenefit",
    "FamilyMemberHistory",
    "Immunization",
    "RelatedPerson",
}
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"


def id_of(person: Person, resource_type: str, name: str) -> str:
    return epic_id(person.seed, resource_type, person.index, "seldom", name)


def of_person(person: Person, resource_type: str, name: str, **elements: Any) -> Resource:
    """A resource of the person; `name` tells it from the person's others of the type."""
    subject = "patient" if resource_type in _PATIENT else "subject"
    head = {"resourceType": resource_type, "id": id_of(person, resource_type, name), subject: person.subject}
    return head | elements


def reporter(person: Person) -> Resource:
    """Who tells of the person: the relative where there is one, else the person."""
    return person.relative or person.subject


def condition(person: Person, name: str, **elements: Any) -> Resource:
    """A confirmed, active diagnosis of the encounter, type 2 diabetes mellitus unless `code` says otherwise."""
    usual = {
        "category": [hl7_status("condition-category", "encounter-diagnosis")],
        "clinicalStatus": hl7_status("condition-clinical", "active"),
        "verificationStatus": hl7_status("condition-ver-status", "confirmed"),
        "code": plain_concept(code_book().get("44054006")),
        "recordedDate": instant(person.lately)[:10],
    }
    return of_person(person, "Condition", name, **(usual | elements))


def observation(person: Person, name: str, code: str, **elements: Any) -> Resource:
    """A final result of the code of `codes.csv`, of the laboratory unless `category` says otherwise."""
    usual = {
        "status": "final",
        "category": [hl7_status("observation-category", "laboratory")],
        "code": plain_concept(code_book().get(code)),
        "effectiveDateTime": instant(person.lately),
    }
    return of_person(person, "Observation", name, **(usual | elements))


def visit(person: Person, name: str, start: int, *, hours: int = 1, **elements: Any) -> Resource:
    """A finished Encounter from `start` (seconds since 1970) on, ambulatory unless `class` says otherwise."""
    usual = {
        "status": "finished",
        "class": {"system": ACT_CODE, "code": "AMB", "display": "ambulatory"},
        "period": {"start": instant(start), "end": instant(start + hours * 3600)},
    }
    return of_person(person, "Encounter", name, **(usual | elements))


def order(person: Person, name: str, drug: str, **elements: Any) -> Resource:
    """A completed MedicationRequest for outpatients, written inline."""
    usual = {
        "status": "completed",
        "intent": "order",
        "category": [hl7_status("medicationrequest-category", "community")],
        "medicationCodeableConcept": plain_concept(code_book().get(drug)),
        "authoredOn": instant(person.lately),
    }
    return of_person(person, "MedicationRequest", name, **(usual | elements))
