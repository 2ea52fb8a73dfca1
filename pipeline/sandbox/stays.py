"""The Encounter of one synthetic visit: its class, state, participants, places, diagnoses, admission and discharge."""

from __future__ import annotations

from random import Random

from pipeline.sandbox.shapes import DAY, EPIC, Chooser, Resource, instant, reference, turn
from pipeline.sandbox.visit import TYPES, Visit

__all__ = ["encounter", "status_of"]

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


def status_of(visit: Visit) -> str:
    """The status that the visit was given, else one that is drawn."""
    return visit.status or _STATUSES.pick(visit.rng)


def encounter(visit: Visit, status: str, conditions: list[Resource]) -> Resource:
    rng = visit.rng
    system, code, display = rng.choice(_CLASSES[visit.kind])
    type_code, text = TYPES[visit.kind]
    made: Resource = {
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
        made["period"]["end"] = instant(visit.end)
    if rng.random() < 0.8:
        made["participant"] = _participants(visit, visit.practitioner())
    if rng.random() < 0.7:
        made["location"] = _places(visit, rng.choice(visit.person.directory.places.wards))
    if rng.random() < 0.6:
        made["serviceProvider"] = reference("Organization", visit.person.directory.organizations[0])
    if conditions and rng.random() < 0.7:
        made["diagnosis"] = [_diagnosis(rank, each["id"]) for rank, each in enumerate(conditions, start=1)]
    if visit.kind == "hospital":
        made["hospitalization"] = _hospitalization(rng, closed=status == "finished")
    return made


def _participants(visit: Visit, attending: Resource) -> list[Resource]:
    """One without a type; or who referred, then who attended; of stays two attending, one after the other."""
    directory = visit.person.directory
    number = turn(visit.id, len(directory.practitioners))
    other = reference("Practitioner", directory.practitioners[number], directory.practitioner_name(number))
    if visit.kind == "hospital":
        change = visit.start + DAY
        later = {"start": instant(change), "end": instant(visit.end)}
        first = {"start": instant(visit.start), "end": instant(change)}
        return [_participant("ATND", other, period=later), _participant("ATND", attending, period=first)]
    if turn(visit.id, 3):
        return [{"individual": attending}]
    return [_participant("REF", other), _participant("ATND", attending)]


_PARTICIPATIONS = {"REF": "referrer", "ATND": "attender"}


def _participant(code: str, individual: Resource, **more: Resource) -> Resource:
    coding = {"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": code}
    text = _PARTICIPATIONS[code]
    return {"type": [{"coding": [coding | {"display": text}], "text": text}], "individual": individual, **more}


def _places(visit: Visit, ward: str) -> list[Resource]:
    """A ward; of a stay unit, unit, hospital, room and bed with one period, or two such lists after a transfer."""
    if visit.kind != "hospital":
        return [{"location": reference("Location", ward)}]
    way = turn(visit.id, 3)
    if way < _TRANSFERRED:
        return _stay(visit, way, visit.start, visit.end)
    transfer = visit.start + 6 * 3600
    return [*_stay(visit, 0, visit.start, transfer), *_stay(visit, 1, transfer, visit.end)]


_TRANSFERRED = 2


def _stay(visit: Visit, unit: int, start: int, end: int) -> list[Resource]:
    period = {"start": instant(start), "end": instant(end)}
    places = visit.person.directory.places.stay(unit)
    return [{"location": reference("Location", place), "status": "completed", "period": period} for place in places]


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
