"""Orders, dispenses, infusions and statements as they seldom come: without a code, a date, a supply, or with too much."""

from __future__ import annotations

from typing import Any

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.building import Way, id_of, of_person, order, reporter
from pipeline.sandbox.shapes import DAY, Resource, instant, plain_concept, reference

__all__ = ["DRUGS"]

_HOUR = 3600
_TABLET, _LIQUID, _INFUSION = "197361", "1740467", "313002"
_UCUM = "http://unitsofmeasure.org"


def _by_reference(person: Person, name: str, medication: Resource) -> list[Resource]:
    made = order(person, name, _TABLET)
    del made["medicationCodeableConcept"]
    return [made | {"medicationReference": medication}]


def _by_display(person: Person) -> list[Resource]:
    return _by_reference(person, "display", {"display": "Homeopathic drops of the patient's own"})


def _by_absent_medication(person: Person) -> list[Resource]:
    """The Medication is in no export."""
    absent = reference("Medication", id_of(person, "Medication", "absent"), "Trial drug 4711")
    return _by_reference(person, "absent", absent)


def _by_bounds_alone(person: Person) -> list[Resource]:
    bounds = {"start": instant(person.lately), "end": instant(person.lately + 20 * DAY)}
    made = order(person, "bounds", _TABLET, dosageInstruction=[{"timing": {"repeat": {"boundsPeriod": bounds}}}])
    del made["authoredOn"]
    return [made]


def _by_mail(person: Person) -> list[Resource]:
    """Ordered from, and sent by, a pharmacy that sends by mail; no supply says how long it lasts."""
    pharmacy = reference("Organization", person.directory.pharmacy, person.directory.pharmacy_name)
    ordered = order(person, "by mail", _TABLET, dispenseRequest={"performer": pharmacy})
    sent = _dispense(person, "by mail", performer=[{"actor": pharmacy}])
    return [ordered, sent]


def _dispense(person: Person, name: str, **elements: Any) -> Resource:
    usual = {
        "status": "completed",
        "medicationCodeableConcept": plain_concept(code_book().get(_TABLET)),
        "whenHandedOver": instant(person.lately + DAY),
    }
    return of_person(person, "MedicationDispense", name, **(usual | elements))


def _daily(times: int, value: float, unit: str) -> list[Resource]:
    dose = {"doseQuantity": {"value": value, "unit": unit}}
    return [{"timing": {"repeat": {"frequency": times, "period": 1, "periodUnit": "d"}}, "doseAndRate": [dose]}]


def _too_long(person: Person) -> list[Resource]:
    supply = {"value": 900, "unit": "Day", "system": _UCUM, "code": "d"}
    ordered = {"quantity": {"value": 900, "unit": "tablet"}, "expectedSupplyDuration": supply}
    return [order(person, "too long", _TABLET, dispenseRequest=ordered)]


def _liquid(person: Person) -> list[Resource]:
    """Handed out by volume, taken by mass."""
    doses = _daily(2, 4, "mg")
    return [order(person, "liquid", _LIQUID, dispenseRequest={"quantity": _volume(80)}, dosageInstruction=doses)]


def _volume(value: float) -> Resource:
    return {"value": value, "unit": "mL", "system": _UCUM, "code": "mL"}


def _dispense_by_daily_dose(person: Person) -> list[Resource]:
    """60 tablets, two a day: nothing else says how long they last."""
    doses = _daily(2, 1, "tablet")
    return [_dispense(person, "by daily dose", quantity={"value": 60, "unit": "tablet"}, dosageInstruction=doses)]


def _stated(person: Person, name: str, **elements: Any) -> list[Resource]:
    usual = {
        "status": "active",
        "medicationCodeableConcept": plain_concept(code_book().get(_TABLET)),
        "effectiveDateTime": instant(person.lately),
    }
    return [of_person(person, "MedicationStatement", name, **(usual | elements))]


def _stated_by_somebody(person: Person) -> list[Resource]:
    return _stated(person, "told", informationSource=reporter(person))


def _stated_by_nobody(person: Person) -> list[Resource]:
    return _stated(person, "without source")


def _infusion(person: Person) -> list[Resource]:
    """Begun, made faster, stopped."""
    infused = order(person, "infusion", _INFUSION, status="active")
    rates = ((0, 100), (4, 150), (10, 0))
    return [infused, *(_at_rate(person, infused, hours, rate) for hours, rate in rates)]


def _at_rate(person: Person, infused: Resource, hours: int, rate: float) -> Resource:
    return of_person(
        person,
        "MedicationAdministration",
        f"rate after {hours} hours",
        status="completed",
        medicationCodeableConcept=infused["medicationCodeableConcept"],
        request=reference("MedicationRequest", infused["id"]),
        effectiveDateTime=instant(person.lately + hours * _HOUR),
        dosage={"rateQuantity": {"value": rate, "unit": "mL/hr", "system": _UCUM, "code": "mL/h"}},
    )


def _reported(person: Person) -> list[Resource]:
    return [order(person, "reported", _TABLET, reportedReference=reporter(person))]


def _stopped(person: Person) -> list[Resource]:
    """The day on which it was stopped is in the bounds; the supply would last longer."""
    bounds = {"start": instant(person.lately), "end": instant(person.lately + 9 * DAY)}
    doses = [{"timing": {"repeat": {"boundsPeriod": bounds}}}]
    ordered = {"quantity": {"value": 30, "unit": "tablet"}}
    return [order(person, "stopped", _TABLET, status="stopped", dosageInstruction=doses, dispenseRequest=ordered)]


def _as_needed(person: Person) -> list[Resource]:
    """No daily dose can be computed."""
    doses = [{**_daily(4, 1, "tablet")[0], "asNeededBoolean": True}]
    ordered = {"quantity": {"value": 20, "unit": "tablet"}}
    return [order(person, "as needed", _TABLET, dosageInstruction=doses, dispenseRequest=ordered)]


DRUGS: tuple[Way, ...] = (
    _by_display,
    _by_mail,
    _by_bounds_alone,
    _stated_by_somebody,
    _too_long,
    _liquid,
    _infusion,
    _reported,
    _dispense_by_daily_dose,
    _stated_by_nobody,
    _stopped,
    _as_needed,
    _by_absent_medication,  # the last: in worlds of twelve patients every reference leads somewhere
)
