"""MedicationRequests of one synthetic visit: what is ordered, how it is named, how much and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.shapes import DAY, Chooser, Resource, instant, plain_concept, reference
from pipeline.sandbox.visit import Visit

__all__ = ["medication_requests"]

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
        yield request | _dosage(rng, visit.start, inpatient=inpatient)


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
                "system": "http://unitsofmeasure.org",
                "code": "d",
            },
        }
    return answer
