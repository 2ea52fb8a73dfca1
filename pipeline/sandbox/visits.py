"""One synthetic visit: Encounter, and what is written during it except results (`results.py`) and what followed from its orders
(`medications.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.medications import carried_out
from pipeline.sandbox.results import LAB_PANELS, lab_panel, single_results, vital_signs
from pipeline.sandbox.shapes import (
    DAY,
    EPIC,
    Chooser,
    Resource,
    concept_variants,
    condition_variants,
    instant,
    local_date,
    plain_concept,
    reference,
)
from pipeline.sandbox.visit import TYPES, Visit

__all__ = ["visit_resources"]

_EPIC_CLASS = "urn:oid:1.2.840.114350.1.72.1.7.7.10.696784.13260"
_ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_DIAGNOSIS_ROLE = "http://terminology.hl7.org/CodeSystem/diagnosis-role"
_STATUSES = Chooser(
    {
        "finished": 905,
        "in-progress": 15,
        "arrived": 15,
        "triaged": 5,
        "planned": 25,
        "cancelled": 25,
        "entered-in-error": 10,
    }
)
_CLASSES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "office": (
        (_EPIC_CLASS, "5", "Appointment"),
        (_EPIC_CLASS, "4", "HOV"),
        (_ACT_CODE, "AMB", "ambulatory"),
        (_EPIC_CLASS, "5", "Appointment"),
    ),
    "support": ((_EPIC_CLASS, "13", "Support OP Encounter"),),
    "hospital": ((_ACT_CODE, "IMP", "inpatient encounter"), (_ACT_CODE, "ACUTE", "inpatient acute")),
    "emergency": ((_ACT_CODE, "EMER", "emergency"),),
    "virtual": ((_ACT_CODE, "VR", "virtual"),),
    "telephone": ((_EPIC_CLASS, "13", "Support OP Encounter"),),
}
_ADMIT_SOURCES = ("emd", "outp", "hosp-trans", "gp", "other")
_DISPOSITIONS = ("home", "home", "snf", "rehab", "other-hcf", "exp")
_CONDITION_STATES = Chooser({"confirmed": 90, "provisional": 4, "refuted": 2, "unconfirmed": 2, "entered-in-error": 2})
_MEDICATION_STATUSES = Chooser(
    {"active": 45, "completed": 38, "stopped": 10, "on-hold": 2, "cancelled": 2, "draft": 1, "entered-in-error": 2}
)
_INTENTS = Chooser({"order": 94, "plan": 3, "instance-order": 2, "proposal": 1})
_PROCEDURE_STATUSES = Chooser(
    {"completed": 90, "in-progress": 4, "not-done": 3, "preparation": 1, "entered-in-error": 2}
)
_IMMUNIZATION_STATUSES = Chooser({"completed": 95, "not-done": 4, "entered-in-error": 1})
_TEXT_DIAGNOSES = ("Feeling under the weather", "Follow-up after test", "Paperwork request")


def visit_resources(visit: Visit) -> Iterator[tuple[str, Resource]]:
    """Everything of one visit, as (resource type, resource); a visit that did not happen is only an Encounter."""
    status = visit.status or _STATUSES.pick(visit.rng)
    happened = status not in ("planned", "cancelled")
    conditions = list(_conditions(visit)) if happened else []
    yield "Encounter", _encounter(visit, status, conditions)
    if not happened:
        return
    yield from (("Condition", condition) for condition in conditions)
    yield from vital_signs(visit)
    yield from single_results(visit)
    for panel in LAB_PANELS:
        if visit.rng.random() < panel.chance:
            yield from lab_panel(visit, panel)
    for request in _medication_requests(visit):
        yield "MedicationRequest", request
        yield from carried_out(visit, request)
    yield from _deeds(visit)


def _encounter(visit: Visit, status: str, conditions: list[Resource]) -> Resource:
    rng = visit.rng
    system, code, display = rng.choice(_CLASSES[visit.kind])
    type_code, text = TYPES[visit.kind]
    encounter: Resource = {
        "resourceType": "Encounter",
        "id": visit.id,
        "identifier": [{"use": "usual", "system": f"{EPIC}.3.698084.8", "value": str(rng.randrange(10**6))}],
        "status": status,
        "class": {"system": system, "code": code, "display": display},
        "type": [{"coding": [{"system": f"{EPIC}.10.698084.30", "code": type_code, "display": text}], "text": text}],
        "subject": visit.person.subject,
        "period": {"start": instant(visit.start if status != "planned" else visit.person.now + 30 * DAY)},
    }
    if rng.random() < 0.95 and status == "finished":  # some closed visits have no end
        encounter["period"]["end"] = instant(visit.end)
    if rng.random() < 0.8:
        encounter["participant"] = [{"individual": visit.practitioner()}]
    if rng.random() < 0.7:
        locations = visit.person.directory.locations
        encounter["location"] = [{"location": reference("Location", rng.choice(locations))}]
    if rng.random() < 0.6:
        encounter["serviceProvider"] = reference("Organization", visit.person.directory.organizations[0])
    if conditions and rng.random() < 0.7:
        encounter["diagnosis"] = [_diagnosis(rank, each["id"]) for rank, each in enumerate(conditions, start=1)]
    if visit.kind == "hospital":
        encounter["hospitalization"] = _hospitalization(rng, closed=status == "finished")
    return encounter


def _diagnosis(rank: int, condition_id: str) -> Resource:
    role = ("AD", "Admission diagnosis") if rank == 1 else ("DD", "Discharge diagnosis")
    use = {"coding": [{"system": _DIAGNOSIS_ROLE, "code": role[0], "display": role[1]}], "text": role[1]}
    return {"condition": reference("Condition", condition_id), "use": use, "rank": rank}


def _hospitalization(rng: Random, *, closed: bool) -> Resource:
    source = {"system": "http://terminology.hl7.org/CodeSystem/admit-source", "code": rng.choice(_ADMIT_SOURCES)}
    hospitalization: Resource = {"admitSource": {"coding": [source]}}
    disposition, locally = rng.choice(_DISPOSITIONS), rng.random() < 0.3
    if closed:
        system = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
        local = {"system": f"{EPIC}.10.698084.18888", "code": "1", "display": "Home or Self Care"}
        coding = [local] if disposition == "home" and locally else [{"system": system, "code": disposition}]
        hospitalization["dischargeDisposition"] = {"coding": coding}
    return hospitalization


@cache
def _diagnosis_concepts() -> tuple[list[Resource], list[float]]:
    """All ways in which a diagnosis is written, and running weights: the list begins with the frequent ones."""
    book = code_book()
    snomed = [code for code in book.of("condition") if code.system == "http://snomed.info/sct"]
    single = [code for code in book.of("condition") if not code.partner]
    local = book.of("local-condition")
    groups = [condition_variants(code) for code in snomed] + [[plain_concept(code)] for code in single + local]
    groups.append([{"text": text} for text in _TEXT_DIAGNOSES])
    concepts: list[Resource] = []
    weights: list[float] = []
    total = 0.0
    for rank, group in enumerate(groups):
        for concept in group:
            total += 1 / (rank + 3) / len(group)
            concepts.append(concept)
            weights.append(total)
    return concepts, weights


def _conditions(visit: Visit) -> Iterator[Resource]:
    rng = visit.rng
    count = rng.choices([0, 1, 2, 3], [48, 37, 11, 4])[0]
    for number in range(count):
        concepts, weights = _diagnosis_concepts()
        verification = _CONDITION_STATES.pick(rng)
        if visit.first_condition_in_error and number == 0:
            verification = "entered-in-error"
        condition: Resource = {
            "resourceType": "Condition",
            "id": visit.new_id("Condition"),
            "category": [_condition_category(rng)],
            "code": rng.choices(concepts, cum_weights=weights)[0],
        }
        visit.belongs(condition)
        condition |= _condition_dates(visit)
        condition["verificationStatus"] = _hl7_status("condition-ver-status", verification)
        if verification != "entered-in-error":
            closed = "abatementDateTime" in condition
            condition["clinicalStatus"] = _hl7_status("condition-clinical", "resolved" if closed else "active")
        if rng.random() < 0.05:
            del condition["category"]
        yield condition


def _condition_category(rng: Random) -> Resource:
    code = "encounter-diagnosis" if rng.random() < 0.65 else "problem-list-item"
    return {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-category", "code": code}]}


def _condition_dates(visit: Visit) -> Resource:
    rng, start = visit.rng, visit.start
    chance = rng.random()
    recorded = local_date(start)
    dates: Resource = {} if chance < 0.02 else {"recordedDate": recorded}
    if chance < 0.04:
        dates["onsetDateTime"] = recorded[:4]
    elif chance < 0.08:
        dates["onsetDateTime"] = recorded[:7]
    elif chance < 0.6:
        dates["onsetDateTime"] = local_date(max(start - rng.randrange(400) * DAY, visit.person.born))
    elif chance < 0.7:
        dates["onsetDateTime"] = instant(start)
        dates["abatementDateTime"] = instant(start + 14 * DAY)
    return dates


def _hl7_status(system: str, code: str) -> Resource:
    return {"coding": [{"system": f"http://terminology.hl7.org/CodeSystem/{system}", "code": code}]}


def _medication_requests(visit: Visit) -> Iterator[Resource]:
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


def _deeds(visit: Visit) -> Iterator[tuple[str, Resource]]:
    rng = visit.rng
    if rng.random() < 0.25:
        yield "Immunization", _immunization(visit)
    for _ in range(rng.choices([0, 1, 2], [60, 32, 8])[0]):
        yield "Procedure", _procedure(visit)
    if rng.random() < 0.35:
        yield "DocumentReference", _document(visit)


@cache
def _vaccine_concepts() -> list[Resource]:
    return [plain_concept(code) for code in code_book().of("vaccine")]


@cache
def _procedure_concepts() -> list[Resource]:
    book = code_book()
    variants = [variant for code in book.of("procedure") for variant in concept_variants(code, "procedure")]
    return variants + [plain_concept(code) for code in book.of("local-procedure")] + [{"text": "Dressing check"}]


def _immunization(visit: Visit) -> Resource:
    rng = visit.rng
    when = local_date(visit.start)
    chance = rng.random()
    immunization: Resource = {
        "resourceType": "Immunization",
        "id": visit.new_id("Immunization"),
        "status": _IMMUNIZATION_STATUSES.pick(rng),
        "vaccineCode": rng.choice(_vaccine_concepts()),
        "occurrenceDateTime": when[:4] if chance < 0.02 else when[:7] if chance < 0.04 else when,
        "primarySource": rng.random() < 0.7,
        "lotNumber": f"DEMO{rng.randrange(1000):03}",
        "route": plain_concept(code_book().of("route")[1]),
        "doseQuantity": {"value": 0.5, "unit": "mL", "system": "http://unitsofmeasure.org", "code": "mL"},
    }
    if rng.random() < 0.3:
        del immunization["doseQuantity"], immunization["lotNumber"]
    return visit.belongs(immunization, "patient")


def _procedure(visit: Visit) -> Resource:
    rng = visit.rng
    procedure: Resource = {
        "resourceType": "Procedure",
        "id": visit.new_id("Procedure"),
        "status": _PROCEDURE_STATUSES.pick(rng),
        "code": rng.choice(_procedure_concepts()),
    }
    visit.belongs(procedure)
    if rng.random() < 0.7:
        procedure["performedDateTime"] = instant(visit.start + 900)
    else:
        procedure["performedPeriod"] = {"start": instant(visit.start + 900), "end": instant(visit.start + 2400)}
    if rng.random() < 0.6:
        procedure["performer"] = [{"actor": visit.practitioner()}]
    return procedure


def _document(visit: Visit) -> Resource:
    url = f"Binary/{visit.new_id('Binary')}"
    document: Resource = {
        "resourceType": "DocumentReference",
        "id": visit.new_id("DocumentReference"),
        "status": "current",
        "docStatus": "final" if visit.settled else "preliminary",
        "type": plain_concept(visit.rng.choice(code_book().of("note"))),
        "subject": visit.person.subject,
        "date": instant(visit.end),
        "content": [{"attachment": {"contentType": "text/html", "url": url}}],
    }
    document["context"] = {"encounter": [visit.encounter], "period": {"start": instant(visit.start)}}
    return document
