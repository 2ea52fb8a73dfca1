"""A small world whose references are to roles and by identifiers, in versions that stand for one thing, another, or nothing.

A night is a text such as `p1 d1 o1:K`: the resources that its export holds, each in a version (A unless it says so).
Identifiers, as all ids, are told apart by the world's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.integration.support import encounter, observation, patient, reference
from tests.integration.worlds import Night, files_of_night

#: Resource → its type.
TYPES = {
    "p1": "Patient",
    "d1": "Practitioner",
    "d2": "Practitioner",
    "r1": "PractitionerRole",
    "r2": "PractitionerRole",
    "g1": "Organization",
    "g2": "Organization",
    "l1": "Location",
    "l2": "Location",
    "e1": "Encounter",
    "f1": "Encounter",
    "o1": "Observation",
    "c1": "Condition",
    "m1": "MedicationRequest",
    "q1": "Procedure",
    "i1": "Immunization",
}
#: Resource → its versions.
#: Events  A: by role r1 and identifiers n1, n2 …  K: by identifier only  R: by the identifier of a role
#:         B: by what is itself the target  N: by nobody
#: Shared  A: its own identifiers  B: those of its neighbour  N: none  Z: cannot be loaded
#: Roles   A: of d1  B: of d2  K: of who has d1's identifier  N: of nobody  X: of d1, ended  Z: cannot be loaded
VERSIONS = {
    name: {"PractitionerRole": "ABKNXZ"}.get(kind, "AKRBN" if name in "p1 e1 f1 o1 c1 m1 q1 i1" else "ABNZ")
    for name, kind in TYPES.items()
}

#: What random nights make of each resource: p1 is always there.
RANDOM = {name: (*(() if name == "p1" else ("-",)), *versions) for name, versions in VERSIONS.items()}

_SYSTEM = {"Practitioner": "http://hl7.org/fhir/sid/us-npi", "PractitionerRole": "urn:example:roles"}
_OTHER = "https://github.com/synthetichealth/synthea"
_NEIGHBOUR = {"d1": "d2", "d2": "d1", "g1": "g2", "g2": "g1", "l1": "l2", "l2": "l1"}


def _to(world: str, name: str) -> dict[str, str]:
    return reference(TYPES[name], f"{world}-{name}")


def _identifier(world: str, name: str) -> dict[str, str]:
    return {"system": _SYSTEM.get(TYPES[name], _OTHER), "value": f"{world}/{name}"}


def _conditional(world: str, name: str) -> dict[str, str]:
    identifier = _identifier(world, name)
    return {"reference": f"{TYPES[name]}?identifier={identifier['system']}|{identifier['value']}"}


def _by(world: str, version: str) -> dict[str, Any] | None:
    """Who did it."""
    made: dict[str, dict[str, Any]] = {
        "A": _to(world, "r1"),
        "K": _conditional(world, "d1"),
        "R": {"type": "PractitionerRole", "identifier": _identifier(world, "r1")},
        "B": _to(world, "d2"),
    }
    return made.get(version)


def _at(world: str, version: str, name: str) -> dict[str, Any] | None:
    """Where: an organization or a location, by identifier or by its id."""
    made: dict[str, dict[str, Any]] = {
        "A": {"identifier": _identifier(world, name), "display": "Somewhere"},
        "K": _conditional(world, name),
        "R": _conditional(world, _NEIGHBOUR[name]),
        "B": _to(world, _NEIGHBOUR[name]),
    }
    return made.get(version)


def _shared(world: str, name: str, version: str) -> dict[str, Any]:
    made: dict[str, Any] = {"name": [{"text": name}]} if name.startswith("d") else {"name": name}
    if version in "AB":
        own = _identifier(world, name if version == "A" else _NEIGHBOUR[name])
        made["identifier"] = [{"system": "urn:example:epic", "value": f"{world}-{name}"}, own]
    if name == "l1" and version == "A":
        made["managingOrganization"] = _conditional(world, "g1")
    return made


def _role(world: str, name: str, version: str) -> dict[str, Any]:
    of = {"B": _to(world, "d2"), "K": {"identifier": _identifier(world, "d1")}, "N": None}
    practitioner = of.get(version, _to(world, "d1"))
    made: dict[str, Any] = {"identifier": [_identifier(world, name)], "location": [_conditional(world, "l1")]}
    nucc = {"system": "http://nucc.org/provider-taxonomy", "code": "207R00000X"}
    made |= {"active": version != "X", "specialty": [{"coding": [nucc]}]}
    return made | ({"practitioner": practitioner} if practitioner else {})


def _patient(world: str, name: str, version: str) -> dict[str, Any]:
    made = patient()
    if by := _by(world, version):
        made["generalPractitioner"] = [by]
    if at := _at(world, version, "g1"):
        made["managingOrganization"] = at
    return made


def _encounter(world: str, name: str, version: str) -> dict[str, Any]:
    """e1 is in two places; f1 is a part of it."""
    made = encounter(name, f"{world}-p1")
    hour = 15 if name == "e1" else 17
    made["period"] = {"start": f"2025-01-02T{hour}:00:00Z", "end": "2025-01-05T16:00:00Z"}
    if name == "f1":
        made["partOf"] = _to(world, "e1")
    if by := _by(world, version):
        made["participant"] = [{"individual": {"reference": "Device/none"}}, {"individual": by}]
    if at := _at(world, version, "g1"):
        made["serviceProvider"] = at
    place = _at(world, version, "l1")
    if place and name == "e1":
        days = ({"start": "2025-01-02T16:30:00Z", "end": "2025-01-03T00:00:00Z"}, {"start": "2025-01-03T00:00:00Z"})
        places = (place, _to(world, "l2"))
        made["location"] = [{"location": where, "period": day} for where, day in zip(places, days, strict=True)]
    return made


def _event(element: str, *, several: bool = False, inner: str = "") -> Callable[[str, str, str], dict[str, Any]]:
    """References of an event: who did it, in an element that may be repeated and have them in an inner one."""

    def make(world: str, name: str, version: str) -> dict[str, Any]:
        made = {"encounter": _to(world, "e1"), **_CONTENT[TYPES[name]]}
        by = _by(world, version)
        if by:
            by = {inner: by} if inner else by
            made[element] = [by] if several else by
        return made

    return make


_OBSERVATION = {key: value for key, value in observation().items() if key not in ("id", "subject")}
_CONTENT: dict[str, dict[str, Any]] = {
    "Observation": _OBSERVATION,
    "Condition": {
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "44054006"}]},
        "onsetDateTime": "2025-01-02",
    },
    "MedicationRequest": {
        "status": "active",
        "intent": "order",
        "authoredOn": "2025-01-03",
        "medicationCodeableConcept": {
            "coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "314076"}]
        },
    },
    "Procedure": {
        "status": "completed",
        "performedDateTime": "2025-01-03",
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "29303009"}]},
    },
    "Immunization": {
        "status": "completed",
        "occurrenceDateTime": "2025-01-03",
        "vaccineCode": {"coding": [{"system": "http://hl7.org/fhir/sid/cvx", "code": "140"}]},
    },
}

_MAKERS: dict[str, Callable[[str, str, str], dict[str, Any]]] = {
    "Patient": _patient,
    "Practitioner": _shared,
    "Organization": _shared,
    "Location": _shared,
    "PractitionerRole": _role,
    "Encounter": _encounter,
    "Observation": _event("performer", several=True),
    "Condition": _event("recorder"),
    "MedicationRequest": _event("requester"),
    "Procedure": _event("performer", several=True, inner="actor"),
    "Immunization": _event("performer", several=True, inner="actor"),
}


def resource(world: str, name: str, version: str) -> dict[str, Any]:
    """One resource of a world; FHIR's unknown modifier makes any resource one that cannot be loaded."""
    kind = TYPES[name]
    made = _MAKERS[kind](world, name, "A" if version == "Z" else version)
    if kind not in ("Patient", "Encounter", "Practitioner", "PractitionerRole", "Organization", "Location"):
        made["patient" if kind == "Immunization" else "subject"] = _to(world, "p1")
    unknown = {"modifierExtension": [{"url": "http://example.org/unknown"}]} if version == "Z" else {}
    return {**made, "resourceType": kind, "id": f"{world}-{name}", **unknown}


def files_of(worlds: Mapping[str, Night]) -> dict[str, list[dict[str, Any]]]:
    """Type → the resources of all worlds on one night."""
    return files_of_night(TYPES, resource, worlds)


def last_state(nights: list[dict[str, str]]) -> dict[str, str]:
    """What is left where what is not there any more is deleted: the last version that could be loaded."""
    versions: dict[str, str] = {}
    for held in nights:
        versions |= {name: version for name, version in held.items() if version != "Z"}
    return {name: versions[name] for name in nights[-1] if name in versions}
