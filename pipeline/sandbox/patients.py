"""What is written of one synthetic person outside of visits: Patient, Coverage, AllergyIntolerance, Device, CarePlan, Goal.

Addresses, numbers and phones are plainly invented: 555-01xx phones, streets and cities that do not exist.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sandbox.allergies import allergies
from pipeline.sandbox.coverage import coverage
from pipeline.sandbox.demographics import demographic_extensions
from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.patients import as_seldom
from pipeline.sandbox.shapes import DAY, EPIC, Resource, epic_id, instant, local_date, reference

__all__ = ["person_resources"]

_ZIPS = ("53593", "53711", "60601", "03601", "54650")


def person_resources(person: Person) -> Iterator[tuple[str, Resource]]:
    """(resource type, resource)."""
    yield "Patient", _patient(person)
    if person.rng.random() < 0.8:
        yield "Coverage", coverage(person)
    yield from (("AllergyIntolerance", allergy) for allergy in allergies(person))
    if person.rng.random() < 0.05:
        yield "Device", _device(person)
    if person.rng.random() < 0.2:
        yield "CarePlan", _care_plan(person)
        yield "Goal", _goal(person)


def _patient(person: Person) -> Resource:
    family, given = person.name.split(", ")
    sex = "female" if person.rng.random() < 0.53 else "male"
    patient: Resource = {
        "resourceType": "Patient",
        "id": person.id,
        "extension": list(demographic_extensions(person, sex)),
        "identifier": [
            {"use": "usual", "type": {"text": "EPI"}, "system": f"{EPIC}.5.737384.0", "value": f"E{person.index:07}"},
            {
                "use": "usual",
                "type": {"text": "MRN"},
                "system": f"{EPIC}.5.737384.14",
                "value": f"T{person.index:06}",
            },
        ],
        "active": True,
        "name": [{"use": "official", "text": f"{given} {family}", "family": family, "given": [given]}],
        "telecom": [{"system": "phone", "value": _phone(person), "use": "home"}],
        "gender": sex if person.rng.random() < 0.97 else person.rng.choice(["other", "unknown"]),
        "birthDate": _birth_date(person),
        "address": [_address(person)],
        "managingOrganization": reference("Organization", person.directory.organizations[0]),
    }
    if person.rng.random() < 0.6:
        number = person.index % len(person.directory.practitioners)
        name = person.directory.practitioner_name(number)
        patient["generalPractitioner"] = [reference("Practitioner", person.directory.practitioners[number], name)]
    return as_seldom(person, patient | _death(person))


def _birth_date(person: Person) -> str:
    born = local_date(person.born)
    precision = person.rng.random()
    return born[:4] if precision < 0.01 else born[:7] if precision < 0.02 else born


def _address(person: Person) -> Resource:
    return {
        "use": "home",
        "line": [f"{person.index + 1} Imaginary Street"],
        "city": "Nowhere",
        "state": person.rng.choice(["WI", "IL"]),
        "postalCode": person.rng.choice(_ZIPS),
        "country": "US",
    }


def _phone(person: Person) -> str:
    return f"608-555-{100 + (person.index + 31 * person.phone_version) % 100:04}"


def _death(person: Person) -> Resource:
    if not person.dead:
        return {"deceasedBoolean": False}
    if person.index % 3 == 0:
        return {"deceasedBoolean": True}
    return {"deceasedDateTime": instant(person.now - person.rng.randrange(5, 60) * DAY)}


def _device(person: Person) -> Resource:
    return {
        "resourceType": "Device",
        "id": epic_id(person.seed, "Device", person.index),
        "udiCarrier": [{"deviceIdentifier": f"0000000000{person.index % 10000:04}"}],
        "status": "active",
        "lotNumber": f"LOT{person.index}",
        "type": {"text": "Imaginary infusion pump"},
        "patient": person.subject,
    }


def _care_plan(person: Person) -> Resource:
    return {
        "resourceType": "CarePlan",
        "id": epic_id(person.seed, "CarePlan", person.index),
        "status": "active",
        "intent": "plan",
        "category": [{"text": "Longitudinal care"}],
        "subject": person.subject,
    }


def _goal(person: Person) -> Resource:
    return {
        "resourceType": "Goal",
        "id": epic_id(person.seed, "Goal", person.index),
        "lifecycleStatus": "active",
        "description": {"text": "Walk 30 minutes a day"},
        "subject": person.subject,
    }
