"""A small world of medications: an order, what is dispensed on it, what is given of it, in versions that name one order,
another, or none.

A night is a text such as `p1 m1 a1:B`: the resources that its export holds, each in a version (A unless it says so).

A  names m1 (d2, a2: m2)    B  names the other order    C  d1, d2: names both    N  names none
V  names as A, and is a procedure by its code    X  is entered in error    O  was not done (d: was cancelled)
Z  cannot be loaded
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.integration.support import encounter, patient, reference
from tests.integration.worlds import Night, files_of_night

#: Resource → its type.
TYPES = {
    "p1": "Patient",
    "p2": "Patient",
    "e1": "Encounter",
    "m1": "MedicationRequest",
    "m2": "MedicationRequest",
    "d1": "MedicationDispense",
    "d2": "MedicationDispense",
    "a1": "MedicationAdministration",
    "a2": "MedicationAdministration",
    "a3": "MedicationAdministration",
}
#: What random nights make of each resource: p1 is always there, and p2, who has a3.
RANDOM = {
    "p1": ("A",),
    "p2": ("A", "B"),
    "e1": ("-", "A", "X"),
    "m1": ("-", "A", "A", "B", "V", "X", "Z"),
    "m2": ("-", "A", "A", "V", "X"),
    "d1": ("-", "A", "B", "C", "N", "V", "X", "O", "Z"),
    "d2": ("-", "A", "C", "N"),
    "a1": ("-", "A", "B", "N", "V", "X", "O", "Z"),
    "a2": ("-", "A", "B"),
    "a3": ("-", "A", "B", "N"),
}

_DRUG = ("http://www.nlm.nih.gov/research/umls/rxnorm", "313782")
#: Has an ingredient in common with it.
_OTHER_DRUG = ("http://www.nlm.nih.gov/research/umls/rxnorm", "1049221")
_PROCEDURE = ("http://snomed.info/sct", "29303009")
_STATUS = {"MedicationRequest": "active", "MedicationDispense": "completed", "MedicationAdministration": "completed"}
_NOT_DONE = {
    "MedicationRequest": "cancelled",
    "MedicationDispense": "cancelled",
    "MedicationAdministration": "not-done",
}
PRECEDENCE = {"MedicationAdministration": 1, "MedicationDispense": 2, "MedicationRequest": 3}


def orders_of(name: str, version: str) -> list[str]:
    """The orders that a record names; an order names itself."""
    if TYPES[name] == "MedicationRequest":
        return [name]
    own, other = ("m2", "m1") if name in ("d2", "a2") else ("m1", "m2")
    return {"N": [], "B": [other], "C": ["m1", "m2"]}.get(version, [own])


def is_loaded(name: str, version: str) -> bool:
    return version not in "XOZ"


def table_of(version: str) -> str:
    return "procedure_occurrence" if version == "V" else "drug_exposure"


def _record(world: str, name: str, version: str) -> dict[str, Any]:
    kind = TYPES[name]
    system, code = _PROCEDURE if version == "V" else _OTHER_DRUG if version == "B" else _DRUG
    made: dict[str, Any] = {
        "status": {"X": "entered-in-error", "O": _NOT_DONE[kind]}.get(version, _STATUS[kind]),
        "subject": reference("Patient", f"{world}-{'p2' if name == 'a3' else 'p1'}"),
        "medicationCodeableConcept": {"coding": [{"system": system, "code": code}]},
        "encounter" if kind == "MedicationRequest" else "context": reference("Encounter", f"{world}-e1"),
    }
    orders = [reference("MedicationRequest", f"{world}-{order}") for order in orders_of(name, version)]
    if kind == "MedicationRequest":
        return made | {"intent": "order", "authoredOn": "2025-01-02"}
    if kind == "MedicationDispense":
        return made | {"whenHandedOver": "2025-01-03"} | ({"authorizingPrescription": orders} if orders else {})
    return made | {"effectiveDateTime": "2025-01-03"} | ({"request": orders[0]} if orders else {})


def resource(world: str, name: str, version: str) -> dict[str, Any]:
    """One resource of a world; FHIR's unknown modifier makes any resource one that cannot be loaded. A p2 of version B
    is replaced by p1."""
    kind, own_id = TYPES[name], f"{world}-{name}"
    if kind == "Patient":
        link = [{"type": "replaced-by", "other": reference("Patient", f"{world}-p1")}]
        made = patient(own_id, **({"link": link} if version == "B" else {}))
    elif kind == "Encounter":
        made = encounter(own_id, f"{world}-p1", status="entered-in-error" if version == "X" else "finished")
    else:
        made = _record(world, name, version)
    unknown = {"modifierExtension": [{"url": "http://example.org/unknown"}]} if version == "Z" else {}
    return {"resourceType": kind, **made, "id": own_id, **unknown}


def files_of(worlds: Mapping[str, Night]) -> dict[str, list[dict[str, Any]]]:
    """Type → the resources of all worlds on one night."""
    return files_of_night(TYPES, resource, worlds)


def rows_of(held: Night, option: str = "linked") -> set[tuple[str, str]]:
    """(table, resource) of the rows that a state should have: of the records of each order the most definite ones."""
    records = {
        name: (PRECEDENCE[TYPES[name]], table_of(version), set(orders_of(name, version)))
        for name, version in held.items()
        if TYPES[name] in PRECEDENCE and is_loaded(name, version) and ("p2" if name == "a3" else "p1") in held
    }
    rows: set[tuple[str, str]] = set()
    for name, (precedence, table, orders) in sorted(records.items(), key=lambda item: item[1][0]):
        better = {
            other for _, other in rows if records[other][0] < precedence and records[other][1] == table
        }  # those that count already
        if option == "keep" or not any(orders & records[other][2] for other in better):
            rows.add((table, name))
    return rows
