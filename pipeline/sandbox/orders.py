"""MedicationRequests of one synthetic visit: what is ordered, how it is named, how much and for how long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.shapes import DAY, Chooser, Resource, instant, plain_concept, reference, turn
from pipeline.sandbox.visit import Visit

__all__ = ["medication_requests"]

_UCUM = "http://unitsofmeasure.org"
_MEDICATION_STATUSES = Chooser(
    {"active": 45, "completed": 38, "stopped": 10, "on-hold": 2, "cancelled": 2, "draft": 1, "entered-in-error": 2}
)
_INTENTS = Chooser({"order": 94, "plan": 3, "instance-order": 2, "proposal": 1})


def medication_requests(visit: Visit) -> Iterator[Resource]:
    """Up to five orders, two more for inpatients."""
    rng = visit.rng
    inpatient = visit.kind == "hospital"
    for _ in range(rng.choices([0, 1, 2, 3, 5], [52, 25, 13, 7, 3])[0] + (2 if inpatient else 0)):
        request: Resource = {
            "resourceType": "MedicationRequest",
            "id": visit.new_id("MedicationRequest"),
            "status": _MEDICATION_STATUSES.pick(rng),
            "intent": _INTENTS.pick(rng),
        }
        if rng.random() < 0.9:
            code = "inpatient" if inpatient else rng.choice(["outpatient", "community"])
            system = "http://terminology.hl7.org/CodeSystem/medicationrequest-category"
            request["category"] = [{"coding": [{"system": system, "code": code}], "text": code.title()}]
        if rng.random() < 0.04:
            request["reportedBoolean"] = True
        request |= _medication(visit)
        visit.belongs(request)
        if rng.random() < 0.98:
            request["authoredOn"] = instant(visit.start + 1200)
        request["requester"] = visit.practitioner()
        request |= _dosage(rng, visit.start, inpatient=inpatient)
        yield request if inpatient else _with_doses(request)


def _medication(visit: Visit) -> Resource:
    """Mostly a reference, as at Epic; sometimes contained, written inline, or as text alone."""
    rng, directory = visit.rng, visit.person.directory
    number = min(int(rng.expovariate(0.09)), len(directory.drugs) - 1)
    drug = directory.drugs[number]
    chance = rng.random()
    if chance < 0.85:
        return {"medicationReference": reference("Medication", directory.medications[number], drug.display)}
    if chance < 0.9:
        contained = {"resourceType": "Medication", "id": "med1", "code": plain_concept(drug)}
        return {"contained": [contained], "medicationReference": {"reference": "#med1", "display": drug.display}}
    if chance < 0.98:
        return {"medicationCodeableConcept": plain_concept(drug)}
    return {"medicationCodeableConcept": {"text": drug.display}}


def _dosage(rng: Random, start: int, *, inpatient: bool) -> Resource:
    route = plain_concept(code_book().of("route")[3 if inpatient else 0])
    dosage: Resource = {"text": "Take 1 tablet by mouth daily", "route": route}
    if inpatient or rng.random() < 0.5:
        bounds = {"start": instant(start), "end": instant(start + (3 if inpatient else 90) * DAY)}
        dosage["timing"] = {"repeat": {"boundsPeriod": bounds}}
    answer: Resource = {"dosageInstruction": [dosage]}
    if not inpatient and rng.random() < 0.7:
        days = rng.choice([7, 10, 30, 90])
        answer["dispenseRequest"] = {
            "quantity": {"value": days, "unit": "tablet"},
            "expectedSupplyDuration": {
                "value": days,
                "unit": "Day",
                "system": _UCUM,
                "code": "d",
            },
        }
    return answer


_DOSE_TYPES = "http://epic.com/CodeSystem/dose-rate-type"
_STRENGTH = re.compile(r"([0-9.]+) (MG)")


def _with_doses(request: Resource) -> Resource:
    """Every second order says how much is taken, as Epic does: three times; of these every second for how long only so."""
    way = turn(request["id"], 4)
    if way > 1:
        return request
    times = way + 1
    dosage = request["dosageInstruction"][0]
    said = dosage | {"text": f"Take 1 tablet by mouth {times} times daily", "doseAndRate": _doses(request)}
    repeat = {"frequency": times, "period": 1, "periodUnit": "d"}
    if way == 0:
        said["timing"] = {"repeat": repeat | dosage.get("timing", {}).get("repeat", {})}
        return request | {"dosageInstruction": [said]}
    quantity = {"value": 90 * times, "unit": "tablet"}
    return request | {
        "dosageInstruction": [said | {"timing": {"repeat": repeat}}],
        "dispenseRequest": {"quantity": quantity},
    }


def _doses(request: Resource) -> list[Resource]:
    """What was calculated, how much is to be taken, and what was ordered: mass, tablet, mass."""
    strength = _STRENGTH.search(_name(request))
    mass = {"value": float(strength[1]) if strength else 10, "unit": "mg", "system": _UCUM, "code": "mg"}
    tablet = {"value": 1, "unit": "tablet", "system": _UCUM, "code": "{tbl}"}
    return [_dose("calculated", mass), _dose("admin-amount", tablet), _dose("ordered", mass)]


def _dose(kind: str, quantity: Resource) -> Resource:
    coding = {"system": _DOSE_TYPES, "code": kind, "display": kind}
    return {"type": {"coding": [coding], "text": kind}, "doseQuantity": quantity}


def _name(request: Resource) -> str:
    reference_or_concept = request.get("medicationReference") or request["medicationCodeableConcept"]
    return str(reference_or_concept.get("display") or reference_or_concept["text"])
