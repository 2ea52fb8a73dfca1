"""Conditions and family histories as they seldom come: codes, states, onsets and reporters on which mappings fail."""

from __future__ import annotations

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.building import Way, condition, of_person, reporter
from pipeline.sandbox.shapes import DAY, Resource, hl7_status, instant, local_date, plain_concept

__all__ = ["DIAGNOSES"]


def _general_and_specific(person: Person) -> list[Resource]:
    """Two source codes of one meaning; the general one first."""
    codes = [code_book().get(code).coding() for code in ("E11", "E11.9")]
    return [condition(person, "specific", code={"coding": codes, "text": "Type 2 diabetes mellitus"})]


def _age_with_comparator(person: Person) -> list[Resource]:
    age = {"value": 1, "comparator": "<", "unit": "year", "system": "http://unitsofmeasure.org", "code": "a"}
    return [condition(person, "age", onsetAge=age)]


def _inactive(person: Person) -> list[Resource]:
    return [condition(person, "inactive", clinicalStatus=hl7_status("condition-clinical", "inactive"))]


def _remission(person: Person) -> list[Resource]:
    return [condition(person, "remission", clinicalStatus=hl7_status("condition-clinical", "remission"))]


def _severe(person: Person) -> list[Resource]:
    return [condition(person, "severe", severity=plain_concept(code_book().of("severity")[0]))]


def _staged(person: Person) -> list[Resource]:
    stage = {"summary": plain_concept(code_book().of("stage")[0]), "type": {"text": "Clinical staging"}}
    return [condition(person, "staged", stage=[stage])]


def _told(person: Person) -> list[Resource]:
    return [condition(person, "told", asserter=reporter(person))]


def _recorded_by(person: Person) -> list[Resource]:
    return [condition(person, "recorded by", recorder=reporter(person))]


def _before_birth(person: Person) -> list[Resource]:
    return [condition(person, "before birth", onsetDateTime=local_date(person.born - 10 * 365 * DAY))]


def _long_ago(person: Person) -> list[Resource]:
    """A disease that began long before anything else is known of the person."""
    began = max(person.born, person.now - 29 * 365 * DAY)
    return [condition(person, "long ago", onsetDateTime=local_date(began))]


def _twice(person: Person) -> list[Resource]:
    """On the problem list and as the encounter's diagnosis, on one day."""
    problem = [hl7_status("condition-category", "problem-list-item")]
    day = local_date(person.lately)
    return [
        condition(person, "of the encounter", onsetDateTime=day),
        condition(person, "problem", onsetDateTime=day, category=problem),
    ]


def _of_the_family(person: Person) -> list[Resource]:
    disease = {"code": plain_concept(code_book().get("44054006"))}
    mother = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-RoleCode", "code": "MTH"}]}
    return [
        of_person(
            person,
            "FamilyMemberHistory",
            "mother",
            status="completed",
            relationship=mother | {"text": "Mother"},
            date=instant(person.lately),
            condition=[disease],
        )
    ]


DIAGNOSES: tuple[Way, ...] = (
    _general_and_specific,
    _age_with_comparator,
    _inactive,
    _told,
    _remission,
    _severe,
    _staged,
    _recorded_by,
    _before_birth,
    _long_ago,
    _twice,
    _of_the_family,
)
