"""Observations as they seldom come: texts for values, panels of members, results reported by somebody, of procedures, below 0."""

from __future__ import annotations

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.building import Way, observation, of_person, reporter
from pipeline.sandbox.shapes import Resource, hl7_status, instant, plain_concept, reference

__all__ = ["RESULTS"]

_UCUM = "http://unitsofmeasure.org"
_VITAL_SIGNS = [hl7_status("observation-category", "vital-signs")]


def _negative_text(person: Person) -> list[Resource]:
    return [observation(person, "negative", "5802-4", valueString="Negative")]


def _titre(person: Person) -> list[Resource]:
    return [observation(person, "titre", "1988-5", valueString="1:128")]


def _thousands(person: Person) -> list[Resource]:
    return [observation(person, "thousands", "2276-4", valueString=">1,000")]


def _told_weight(person: Person) -> list[Resource]:
    weight = {"value": 71, "unit": "kg", "system": _UCUM, "code": "kg"}
    reported = {"category": _VITAL_SIGNS, "valueQuantity": weight, "performer": [reporter(person)]}
    return [observation(person, "told", "29463-7", **reported)]


def _members_alone(person: Person) -> list[Resource]:
    """A panel that has no value of its own and names what belongs to it."""
    values = {"2823-3": (4.1, "mmol/L"), "2951-2": (139, "mmol/L")}
    members = [
        observation(person, code, code, valueQuantity={"value": value, "unit": unit, "system": _UCUM, "code": unit})
        for code, (value, unit) in values.items()
    ]
    named = [reference("Observation", member["id"]) for member in members]
    return [*members, observation(person, "panel", "24321-2", hasMember=named)]


def _below_zero(person: Person) -> list[Resource]:
    value = {"value": -3.2, "unit": "mg/dL", "system": _UCUM, "code": "mg/dL"}
    return [observation(person, "below zero", "2345-7", valueQuantity=value)]


def _of_a_procedure(person: Person) -> list[Resource]:
    """A code that stands for a procedure, with what was found."""
    found = plain_concept(code_book().get("260385009"))
    return [observation(person, "of a procedure", "29303009", valueCodeableConcept=found)]


def _told_by_patient(person: Person) -> list[Resource]:
    pulse = {"value": 66, "unit": "/min", "system": _UCUM, "code": "/min"}
    reported = {"category": _VITAL_SIGNS, "valueQuantity": pulse, "performer": [person.subject]}
    return [observation(person, "told by patient", "8867-4", **reported)]


def _note(person: Person) -> list[Resource]:
    """A code of a note, as a report without results."""
    return [
        of_person(
            person,
            "DiagnosticReport",
            "note",
            status="final",
            category=[{"text": "Lab"}],
            code=plain_concept(code_book().get("34117-2")),
            effectiveDateTime=instant(person.lately),
            conclusion="Nothing of note.",
        )
    ]


def _judged_by_alias(person: Person) -> list[Resource]:
    """A number and its interpretation, by the system's former name."""
    value = {"value": 6.4, "unit": "mmol/L", "system": _UCUM, "code": "mmol/L"}
    high = {"coding": [{"system": "http://hl7.org/fhir/v2/0078", "code": "H", "display": "High"}]}
    return [observation(person, "judged", "2823-3", valueQuantity=value, interpretation=[high])]


def _in_pounds(person: Person) -> list[Resource]:
    pounds = {"value": 154, "unit": "lb", "system": _UCUM, "code": "[lb_av]"}
    return [observation(person, "pounds", "29463-7", category=_VITAL_SIGNS, valueQuantity=pounds)]


def _not_survived(person: Person) -> list[Resource]:
    """A point that was forgotten."""
    degrees = {"value": 366, "unit": "Cel", "system": _UCUM, "code": "Cel"}
    return [observation(person, "not survived", "8310-5", category=_VITAL_SIGNS, valueQuantity=degrees)]


RESULTS: tuple[Way, ...] = (
    _negative_text,
    _titre,
    _thousands,
    _told_weight,
    _members_alone,
    _below_zero,
    _of_a_procedure,
    _told_by_patient,
    _note,
    _judged_by_alias,
    _in_pounds,
    _not_survived,
)
