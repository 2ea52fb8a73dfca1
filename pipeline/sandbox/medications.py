"""What followed from the orders of one synthetic visit: what was given in the hospital, what a pharmacy handed out.

Both name their order, so that one exposure lies in two or three resources; now and then nothing says that they belong
together. All is drawn from a generator of the order's own: the rest of the visit does not change with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.shapes import DAY, Resource, epic_id, instant, plain_concept, reference
from pipeline.sandbox.visit import Visit

__all__ = ["carried_out"]

_HOUR = 3600
#: Of orders in these states something was given or handed out.
_BEGUN = ("active", "completed", "stopped")
_MEDICATION = ("medicationReference", "medicationCodeableConcept", "contained")


def carried_out(visit: Visit, request: Resource) -> Iterator[tuple[str, Resource]]:
    """MedicationAdministrations of an inpatient order, the MedicationDispense of a prescription, if there are any."""
    if request["status"] not in _BEGUN or request["intent"] != "order":
        return
    rng = Random(request["id"])  # noqa: S311 - a reproducible world, no secrets
    if visit.kind != "hospital":
        if rng.random() < 0.5:
            yield "MedicationDispense", _dispense(visit, request, rng)
        return
    for dose in range(rng.choice((0, 0, 1, 2, 3))):
        yield "MedicationAdministration", _administration(visit, request, dose, rng)


def _administration(visit: Visit, request: Resource, dose: int, rng: Random) -> Resource:
    """One dose, every twelve hours from the second hour on."""
    given = visit.start + 2 * _HOUR + dose * 12 * _HOUR
    route = plain_concept(code_book().of("route")[3])
    return {
        "resourceType": "MedicationAdministration",
        **_of(visit, request, dose, "MedicationAdministration"),
        "status": "not-done" if rng.random() < 0.1 else "completed",
        **({"request": reference("MedicationRequest", request["id"])} if rng.random() < 0.95 else {}),
        "effectiveDateTime": instant(given),
        "dosage": {"route": route, "dose": {"value": 1, "unit": "tablet"}},
    }


def _dispense(visit: Visit, request: Resource, rng: Random) -> Resource:
    """Handed out on the day of the visit or some days later: what was ordered, and how it is taken if no supply is said."""
    dispense: Resource = {
        "resourceType": "MedicationDispense",
        **_of(visit, request, 0, "MedicationDispense"),
        "status": "cancelled" if rng.random() < 0.05 else "completed",
        "whenHandedOver": instant(visit.start + rng.randrange(4) * DAY + 3 * _HOUR),
    }
    if rng.random() < 0.95:
        dispense["authorizingPrescription"] = [reference("MedicationRequest", request["id"])]
    ordered = request.get("dispenseRequest")
    if ordered:
        dispense["quantity"] = ordered["quantity"]
        if supply := ordered.get("expectedSupplyDuration"):
            dispense["daysSupply"] = supply
        else:
            dispense["dosageInstruction"] = request["dosageInstruction"]
    return dispense


def _of(visit: Visit, request: Resource, number: int, resource_type: str) -> Resource:
    """id, patient, encounter and medication of what was done on an order; the encounter is called context here."""
    made: Resource = {
        "id": epic_id(visit.person.seed, resource_type, request["id"], number),
        "subject": visit.person.subject,
        **{name: request[name] for name in _MEDICATION if name in request},
    }
    return made | ({"context": request["encounter"]} if "encounter" in request else {})
