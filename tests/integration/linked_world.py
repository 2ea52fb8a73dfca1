"""A small world in which every kind of reference occurs, in versions that refer to one thing, another, or nothing.

A night is a text such as `p1 e1 o1:B`: the resources that its export holds, each in a version (A unless it says so).

A  refers to e1, d1, g1, l1 …     B  refers to f1, d2, g2, l2 …     N  refers to nothing (but its patient)
X  is entered in error, or counts no more (types without such a status have none)          Z  cannot be loaded
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.integration.support import encounter, observation, patient, reference
from tests.integration.worlds import Night, files_of_night

_Made = dict[str, Any]


@dataclass(frozen=True)
class _Maker:
    """References within one world: ids are told apart by its name."""

    world: str

    def id(self, name: str) -> str:
        return f"{self.world}-{name}"

    def to(self, name: str) -> dict[str, str]:
        return reference(TYPES[name], self.id(name))

    def shared(self, version: str, *, visit: str = "encounter", performer: str = "") -> _Made:
        """The references of an event: its visit, and who did it (`performer`: the element, empty: none)."""
        made: _Made = {"subject": self.to("p1")}
        if version != "N":
            made[visit] = self.to("f1" if version == "B" else "e1")
            by = self.to("d2" if version == "B" else "d1")
            if performer:
                made[performer] = by
        return made


def _person(make: _Maker, name: str, version: str) -> _Made:
    made = patient(make.id(name))
    if version == "A":
        made |= {"generalPractitioner": [make.to("d1")], "managingOrganization": make.to("g1")}
    if version == "B":
        made |= {"generalPractitioner": [make.to("d2")], "managingOrganization": make.to("g2")}
    if name == "p3" and version == "A":
        made["link"] = [{"type": "replaced-by", "other": make.to("p1")}]
    return made


def _practitioner(make: _Maker, name: str, version: str) -> _Made:
    return {"gender": "female" if version == "A" else "male"}


def _role(make: _Maker, name: str, version: str) -> _Made:
    made: _Made = {"practitioner": make.to("d2" if version == "B" else "d1"), "active": version != "X"}
    if version == "A":
        made["location"] = [make.to("l1")]
    if version == "B":
        made["organization"] = make.to("g2")
    return made


def _organization(make: _Maker, name: str, version: str) -> _Made:
    made: _Made = {"name": f"House {version}"}
    return made | ({"partOf": make.to("g1")} if (name, version) == ("g2", "B") else {})


def _location(make: _Maker, name: str, version: str) -> _Made:
    made: _Made = {"name": f"Ward {version}", "address": {"state": "WI", "postalCode": "53703"}}
    if version == "A":
        made["managingOrganization"] = make.to("g1")
    if version == "B":
        emergency = {"system": "http://terminology.hl7.org/CodeSystem/v3-RoleCode", "code": "ER"}
        made |= {"type": [{"coding": [emergency]}], "partOf": make.to("l1" if name == "l2" else "l2")}
    return made


def _encounter(make: _Maker, name: str, version: str) -> _Made:
    """e1 is an inpatient stay in two places (A) or one (B); f1 is a part of it (A, B) or stands alone."""
    hour = 15 if name == "e1" else 17
    made = encounter(make.id(name), make.id("p1"))
    made["class"] = {"system": made["class"]["system"], "code": "IMP"}
    made["period"] = {"start": f"2025-01-02T{hour}:00:00Z", "end": "2025-01-05T16:00:00Z"}
    if name == "f1" and version in ("A", "B"):
        made["partOf"] = make.to("e1")
    if version == "A":
        places = [make.to("l1"), make.to("l2")] if name == "e1" else [make.to("l2")]
        turn = f"2025-01-03T{hour}:00:00Z"  # which detail is the preceding one must not hang on ids
        days = [{"start": f"2025-01-02T{hour + 1}:30:00Z", "end": turn}, {"start": turn}]
        made |= {
            "participant": [{"individual": make.to("d1")}],
            "serviceProvider": make.to("g1"),
            "location": [
                {"location": place, "period": day} for place, day in zip(places, days[: len(places)], strict=True)
            ],
            "diagnosis": [{"condition": make.to("c1"), "use": _coded("DD")}],
        }
    if version == "B":
        made |= {
            "participant": [{"individual": make.to("d2")}],
            "serviceProvider": make.to("g2"),
            "location": [{"location": make.to("l2" if name == "e1" else "l1")}],
        }
    return made | {"status": "entered-in-error" if version == "X" else "finished"}


def _coded(code: str, system: str = "http://terminology.hl7.org/CodeSystem/diagnosis-role") -> _Made:
    return {"coding": [{"system": system, "code": code}]}


def _observation(make: _Maker, name: str, version: str) -> _Made:
    performer = [make.to("d2" if version == "B" else "d1")] if version != "N" else []
    made = observation(make.id(name), make.id("p3" if name == "o3" else "p1"))
    made |= {"performer": performer} | {
        key: value for key, value in make.shared(version).items() if key == "encounter" and name != "o3"
    }
    return made | {"status": "entered-in-error" if version == "X" else "final"}


def _condition(make: _Maker, name: str, version: str) -> _Made:
    """Version B began long before its visit, so that it has none."""
    return make.shared(version, performer="asserter") | {
        "code": _coded("44054006", "http://snomed.info/sct"),
        "onsetDateTime": "2024-10-02" if version == "B" else "2025-01-02",
        "verificationStatus": {"coding": [{"code": "entered-in-error" if version == "X" else "confirmed"}]},
    }


def _request(make: _Maker, name: str, version: str) -> _Made:
    """An order in the hospital: without bounds it ends with its visit."""
    return make.shared(version, performer="requester") | {
        "intent": "order",
        "status": "entered-in-error" if version == "X" else "active",
        "category": [{"coding": [{"code": "inpatient"}]}],
        "authoredOn": "2025-01-03",
        "medicationReference": make.to("x2" if version == "B" else "x1"),
    }


#: Hours at which actions on the infusion of m1 begin, and of another version: they overtake each other.
_ACTIONS = {"a1": (8, 20), "a2": (12, 10), "a3": (16, 6)}


def _administration(make: _Maker, name: str, version: str) -> _Made:
    """An action on an infusion: a rate (A, and another one at another hour in B), or its stop, which is no row (N)."""
    hour = _ACTIONS[name][version == "B"]
    rate = 0 if version == "N" else hour
    return {
        "subject": make.to("p1"),
        "request": make.to("m1"),
        "status": "entered-in-error" if version == "X" else "completed",
        "medicationCodeableConcept": _coded("314076", "http://www.nlm.nih.gov/research/umls/rxnorm"),
        "effectiveDateTime": f"2025-01-{3 + int(name[1]):02}T{hour:02}:00:00Z",
        "dosage": {"rateQuantity": {"value": rate, "unit": "mL/h"}},
    }


def _medication(make: _Maker, name: str, version: str) -> _Made:
    code = {"x1A": "314076", "x1B": "314077", "x2A": "197361", "x2B": "312961"}[name + version]
    return {"code": _coded(code, "http://www.nlm.nih.gov/research/umls/rxnorm")}


def _device(make: _Maker, name: str, version: str) -> _Made:
    made: _Made = {"type": _coded("43770009" if version == "A" else "706172005", "http://snomed.info/sct")}
    return made | {"status": "entered-in-error" if version == "X" else "active"}


def _device_use(make: _Maker, name: str, version: str) -> _Made:
    made: _Made = {"subject": make.to("p1"), "device": make.to("v1"), "timingDateTime": "2025-01-03"}
    if version != "N":
        made["source"] = make.to("d2" if version == "B" else "d1")
    return made | {"status": "entered-in-error" if version == "X" else "active"}


def _procedure(make: _Maker, name: str, version: str) -> _Made:
    made = make.shared(version) | {
        "code": _coded("29303009", "http://snomed.info/sct"),
        "performedDateTime": "2025-01-03",
        "status": "entered-in-error" if version == "X" else "completed",
    }
    return made | ({"performer": [{"actor": make.to("d2" if version == "B" else "d1")}]} if version != "N" else {})


_MAKERS: dict[str, Callable[[_Maker, str, str], _Made]] = {
    "Patient": _person,
    "Practitioner": _practitioner,
    "PractitionerRole": _role,
    "Organization": _organization,
    "Location": _location,
    "Encounter": _encounter,
    "Observation": _observation,
    "Condition": _condition,
    "MedicationRequest": _request,
    "MedicationAdministration": _administration,
    "Medication": _medication,
    "Device": _device,
    "DeviceUseStatement": _device_use,
    "Procedure": _procedure,
}

#: Resource → its type, in the order of files.
TYPES = {
    "p1": "Patient",
    "p3": "Patient",
    "d1": "Practitioner",
    "d2": "Practitioner",
    "r1": "PractitionerRole",
    "g1": "Organization",
    "g2": "Organization",
    "l1": "Location",
    "l2": "Location",
    "e1": "Encounter",
    "f1": "Encounter",
    "o1": "Observation",
    "o3": "Observation",
    "c1": "Condition",
    "m1": "MedicationRequest",
    "a1": "MedicationAdministration",
    "a2": "MedicationAdministration",
    "a3": "MedicationAdministration",
    "x1": "Medication",
    "x2": "Medication",
    "v1": "Device",
    "u1": "DeviceUseStatement",
    "q1": "Procedure",
}

_VERSIONS = {"Practitioner": "ABZ", "Organization": "ABZ", "Location": "ABNZ", "Patient": "ABNZ", "Medication": "ABZ"}
#: Resource → its versions.
VERSIONS = {name: _VERSIONS.get(kind, "ABNXZ") for name, kind in TYPES.items()}

#: What random nights make of each resource. p1 is always there, and o3, whose person may not be, is never broken: a line
#: that waits for its person as a dead letter gives way to a newer one, whatever that is, which no last state tells.
RANDOM = {name: ("-", *versions) for name, versions in VERSIONS.items()} | {
    "p1": ("A", "B", "N"),
    "o3": ("-", "A", "B", "N", "X"),
}


def resource(world: str, name: str, version: str) -> _Made:
    """One resource of a world; FHIR's unknown modifier makes any resource one that cannot be loaded."""
    made = _MAKERS[TYPES[name]](_Maker(world), name, "A" if version == "Z" else version)
    unknown = {"modifierExtension": [{"url": "http://example.org/unknown"}]} if version == "Z" else {}
    return {"resourceType": TYPES[name], **made, "id": f"{world}-{name}", **unknown}


def files_of(worlds: Mapping[str, Night]) -> dict[str, list[dict[str, Any]]]:
    """Type → the resources of all worlds on one night."""
    return files_of_night(TYPES, resource, worlds)


def last_state(nights: Sequence[Night], *, vanished_stay: bool) -> dict[str, str]:
    """What is left: of each resource its last version that could be loaded, if it is still there and its person is.

    `vanished_stay`: resources that the last night does not hold are kept.
    """
    versions: dict[str, str] = {}
    for held in nights:
        versions |= {name: version for name, version in held.items() if version != "Z"}
    there = versions if vanished_stay else {name: versions[name] for name in nights[-1] if name in versions}
    without_person = {"p1", "p3"} - set(there)
    lost = {name for name in there if ("p3" if name == "o3" else "p1") in without_person and name in _OF_PERSONS}
    return {name: version for name, version in there.items() if name not in lost}


_OF_PERSONS = {"e1", "f1", "o1", "o3", "c1", "m1", "a1", "a2", "a3", "u1", "q1"}
