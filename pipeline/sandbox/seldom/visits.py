"""Encounters as they seldom come: at home, long before birth, after death, under former names of code systems."""

from __future__ import annotations

from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.building import ACT_CODE, Way, id_of, visit
from pipeline.sandbox.seldom.patients import CONTRADICTED_DEATH, DIED_DAYS_AGO
from pipeline.sandbox.shapes import DAY, Resource, hl7_status, instant, reference

__all__ = ["VISITS", "contradicted_death"]

_INPATIENT = {"system": ACT_CODE, "code": "IMP", "display": "inpatient encounter"}
_EMERGENCY = {"system": ACT_CODE, "code": "EMER", "display": "emergency"}
_YEAR = 365 * DAY


def _emergency_then_inpatient(person: Person) -> list[Resource]:
    start = person.lately
    history: list[Resource] = [
        {"class": _EMERGENCY, "period": {"start": instant(start), "end": instant(start + 6 * 3600)}},
        {"class": _INPATIENT, "period": {"start": instant(start + 6 * 3600)}},
    ]
    transferred: Resource = {
        "class": _INPATIENT,
        "classHistory": history,
        "location": [
            *_stay(person, 0, history[0]["period"]),
            *_stay(person, 1, {"start": instant(start + 6 * 3600), "end": instant(start + 50 * 3600)}),
        ],
    }
    return [visit(person, "emergency", start, hours=50, **transferred)]


def _stay(person: Person, unit: int, period: Resource) -> list[Resource]:
    places = person.directory.places.stay(unit)
    return [{"location": reference("Location", place), "status": "completed", "period": period} for place in places]


def _at_home(person: Person) -> list[Resource]:
    home = _home(person, physicalType=hl7_status("location-physical-type", "ho"))
    return [home, _home_visit(person, home)]


def _at_residence(person: Person) -> list[Resource]:
    residence = {"system": "http://terminology.hl7.org/CodeSystem/v3-RoleCode", "code": "PTRES"}
    home = _home(person, type=[{"coding": [residence], "text": "Patient's Residence"}])
    return [home, _home_visit(person, home)]


def _home(person: Person, **kind: object) -> Resource:
    """A Location that is where the person lives: its name and street are the person's."""
    street = {"use": "home", "line": [f"{person.index + 1} Imaginary Street"], "city": "Nowhere", "state": "WI"}
    home = {"resourceType": "Location", "id": id_of(person, "Location", "home"), "status": "active", "mode": "instance"}
    return {**home, "name": f"Home of {person.name}", "address": {**street, "postalCode": "53593"}, **kind}


def _home_visit(person: Person, home: Resource) -> Resource:
    place = {"location": reference("Location", home["id"], home["name"])}
    at_home = {"system": ACT_CODE, "code": "HH", "display": "home health"}
    there: Resource = {"class": at_home, "location": [place]}
    return visit(person, "home", person.lately, **there)


def _before_birth(person: Person) -> list[Resource]:
    """A visit of another time, such as a date that was entered wrongly."""
    return [visit(person, "before birth", person.born - 63 * _YEAR)]


def _former_names(person: Person) -> list[Resource]:
    """Code systems by names that they once had; a patient who stays for now."""
    stays = {"system": "http://www.nubc.org/patient-discharge", "code": "30", "display": "Still a Patient"}
    former: Resource = {
        "class": {"system": "http://hl7.org/fhir/v3/ActCode", "code": "IMP"},
        "hospitalization": {"dischargeDisposition": {"coding": [stays]}},
    }
    return [visit(person, "former names", person.lately, hours=30, **former)]


VISITS: tuple[Way, ...] = (
    _emergency_then_inpatient,
    _at_home,
    _at_residence,
    _before_birth,
    _former_names,
)


def contradicted_death(person: Person) -> list[Resource]:
    """A discharge that says another death than the Patient, and a visit long after both; for one person in 200."""
    if person.index % 200 != CONTRADICTED_DEATH:
        return []
    died = person.now - (DIED_DAYS_AGO - 2) * DAY
    expired = {"dischargeDisposition": hl7_status("discharge-disposition", "exp")}
    last = visit(person, "death", died - 30 * 3600, hours=30, **{"class": _INPATIENT, "hospitalization": expired})
    return [last, visit(person, "after death", person.now - 100 * DAY)]
