"""Lines that a loader must refuse one by one without losing their neighbours. Fixed by the world's seed."""

from __future__ import annotations

import orjson

from pipeline.sandbox.people import Person
from pipeline.sandbox.shapes import Resource, epic_id, instant

__all__ = ["BROKEN_KINDS", "broken_line", "operation_outcome_line"]

#: Truncated JSON; no subject; a number sent as a string; a status that FHIR does not know; a NUL inside a value.
BROKEN_KINDS = ("truncated", "no-subject", "value-as-string", "unknown-status", "nul")


def broken_line(person: Person, kind: str) -> bytes:
    """One Observation line of `person`, without its line end, that is wrong in the way that `kind` names."""
    observation: Resource = {
        "resourceType": "Observation",
        "id": epic_id(person.seed, "Observation", person.index, "broken", kind),
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}]},
        "subject": person.subject,
        "effectiveDateTime": instant(person.now - 86_400),
        "valueQuantity": {"value": 72, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"},
    }
    if kind == "no-subject":
        del observation["subject"]
    elif kind == "value-as-string":
        observation["valueQuantity"]["value"] = "72"
    elif kind == "unknown-status":
        observation["status"] = "finalised"
    elif kind == "nul":
        observation["code"]["coding"][0]["display"] = "Heart\0rate"
    line = orjson.dumps(observation)
    return line[: len(line) // 2] if kind == "truncated" else line


def operation_outcome_line() -> bytes:
    """What Epic puts among the results when it left something out."""
    details = {"text": "Resource request returns no results."}
    coding = [{"system": "urn:oid:1.2.840.114350.1.13.0.1.7.2.657369", "code": "4101"}]
    issue = {"severity": "warning", "code": "processing", "details": {"coding": coding, **details}}
    return orjson.dumps({"resourceType": "OperationOutcome", "issue": [issue]})
