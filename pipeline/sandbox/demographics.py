"""Race, ethnicity, sex and gender identity of a synthetic person, as extensions of US Core and of FHIR."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sandbox.people import Person
from pipeline.sandbox.shapes import Resource

__all__ = ["US_CORE", "demographic_extensions", "race_or_ethnicity"]

US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition"
_OMB = "urn:oid:2.16.840.1.113883.6.238"
_NULL_FLAVOR = "http://terminology.hl7.org/CodeSystem/v3-NullFlavor"
_RACES = {
    "2106-3": "White",
    "2054-5": "Black or African American",
    "2028-9": "Asian",
    "1002-5": "American Indian or Alaska Native",
    "2076-8": "Native Hawaiian or Other Pacific Islander",
    "2131-1": "Other Race",
}
_RACE_WEIGHTS = (60, 14, 8, 3, 1, 5)
_ETHNICITIES = {"2135-2": "Hispanic or Latino", "2186-5": "Not Hispanic or Latino"}


def demographic_extensions(person: Person, sex: str) -> Iterator[Resource]:
    """What most Patients have; each now and then missing."""
    races = person.rng.choices(list(_RACES), _RACE_WEIGHTS, k=2 if person.rng.random() < 0.06 else 1)
    if person.rng.random() < 0.93:
        yield race_or_ethnicity("us-core-race", [_omb(code, _RACES[code]) for code in dict.fromkeys(races)])
    else:
        unknown = {"system": _NULL_FLAVOR, "code": "UNK", "display": "Unknown"}
        yield race_or_ethnicity("us-core-race", [unknown])
    if person.rng.random() < 0.9:
        code = "2135-2" if person.rng.random() < 0.18 else "2186-5"
        yield race_or_ethnicity("us-core-ethnicity", [_omb(code, _ETHNICITIES[code])])
    if person.rng.random() < 0.85:
        yield {"url": f"{US_CORE}/us-core-birthsex", "valueCode": sex[0].upper()}


def _omb(code: str, display: str) -> dict[str, str]:
    return {"system": _OMB, "code": code, "display": display}


def race_or_ethnicity(name: str, codings: list[dict[str, str]], part: str = "ombCategory") -> Resource:
    """The extension `name` with codings of OMB's categories, or of what lies below them (part `detailed`)."""
    parts: list[Resource] = [{"url": part, "valueCoding": coding} for coding in codings]
    parts.append({"url": "text", "valueString": ", ".join(coding["display"] for coding in codings)})
    return {"extension": parts, "url": f"{US_CORE}/{name}"}
