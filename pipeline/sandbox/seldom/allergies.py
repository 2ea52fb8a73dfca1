"""AllergyIntolerances as they seldom come: nothing on file, no category, no longer active, reported by somebody."""

from __future__ import annotations

from typing import Any

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.building import Way, of_person, reporter
from pipeline.sandbox.shapes import Resource, hl7_status, instant, plain_concept

__all__ = ["ALLERGIES"]


def _allergy(person: Person, name: str, clinical: str = "active", **elements: Any) -> list[Resource]:
    usual = {
        "clinicalStatus": hl7_status("allergyintolerance-clinical", clinical),
        "verificationStatus": hl7_status("allergyintolerance-verification", "confirmed"),
        "code": plain_concept(code_book().get("762952008")),
        "recordedDate": instant(person.lately),
    }
    return [of_person(person, "AllergyIntolerance", name, **(usual | elements))]


def _not_on_file(person: Person) -> list[Resource]:
    """Epic's answer for patients who were never asked: without a date."""
    asked = {"system": "http://snomed.info/sct", "code": "1631000175102", "display": "Patient not asked"}
    code = {"coding": [asked], "text": "Not on File"}
    return [of_person(person, "AllergyIntolerance", "not on file", code=code)]


def _without_category(person: Person) -> list[Resource]:
    return _allergy(person, "without category")


def _resolved(person: Person) -> list[Resource]:
    return _allergy(person, "resolved", "resolved", category=["food"], type="allergy")


def _inactive(person: Person) -> list[Resource]:
    return _allergy(person, "inactive", "inactive", category=["food"], type="allergy")


def _told(person: Person) -> list[Resource]:
    return _allergy(person, "told", category=["food"], asserter=reporter(person))


def _recorded_by(person: Person) -> list[Resource]:
    return _allergy(person, "recorded", category=["food"], recorder=reporter(person))


ALLERGIES: tuple[Way, ...] = (_not_on_file, _without_category, _resolved, _told, _recorded_by, _inactive)
