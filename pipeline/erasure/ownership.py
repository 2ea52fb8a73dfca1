"""Whose is a line: which landed lines belong to a person, and what of another's line is about that person.

Persons are known by the surrogate ids of their Patients alone, so that the same rules hold while a person is erased and
for every later export, when nothing but that hash is left.

- A resource belongs to the Patients whom its owner element names (subject, patient, beneficiary, individual, for,
  deliverFor). It is theirs when all of them are erased.
- A resource without such an element (Group, Provenance, Appointment, Binary …) belongs to whomever it names anywhere.
- Where others own it too, or it is of a kind that patients share, it stays: references to the person lose their words,
  and the id in any other text becomes crosses.
- A line that is not valid JSON is theirs when it names them: nothing else can be done with a line that cannot be read.

Resources that name nobody follow what they are about: a Binary the document that attaches it, a Provenance its targets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import orjson

from pipeline.fhir.identity import SurrogateKeys, parse_reference

__all__ = ["ABOUT_TYPES", "ErasedPersons", "Owned", "OwnedLine", "Verdict", "judged", "judged_deletions"]

Verdict = Literal["theirs", "shared"]

#: Types of which no single resource belongs to a patient.
_DIRECTORY = frozenset(
    {
        *("Practitioner", "PractitionerRole", "Organization", "OrganizationAffiliation", "Location"),
        *("HealthcareService", "Endpoint", "Medication", "MedicationKnowledge", "Substance", "InsurancePlan"),
        *("PlanDefinition", "ActivityDefinition", "Questionnaire", "ValueSet", "CodeSystem", "StructureDefinition"),
    }
)
_OWNERS = ("subject", "patient", "beneficiary", "individual", "for", "deliverFor")

#: Types that may name no patient and belong to one all the same, by what they are about.
ABOUT_TYPES = frozenset({"Binary", "Provenance", "AuditEvent", "Linkage", "List", "Basic", "Unknown", "Bundle"})

_LONGEST_ID = 1024

#: Links by which a Patient says that another one is the same person.
_SAME_PERSON = ("replaced-by", "replaces")

#: What may stand before the id of a Patient; in JSON a slash may be escaped.
_BEFORE_ID = (b"Patient/", b"Patient\\/", b"urn:uuid:")
_ID_AT_START = re.compile(rb'[^"\\/#?\s<>|]+')
_NAMED_IN_TEXT = re.compile(r'((?:^|/)Patient/|urn:uuid:)([^"\\/#?\s<>|]+)')
_IS_PATIENT = re.compile(rb'"resourceType"\s*:\s*"Patient"')
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]+)"')

#: What replaces a reference to them, and an entry of a Bundle: shorter than any that named a Patient.
_GONE = {"display": "erased"}
_GONE_ENTRY = {"erased": True}


class ErasedPersons:
    """The Patients (surrogate ids) of one site who are erased."""

    def __init__(self, keys: SurrogateKeys, patients: Collection[int]) -> None:
        self.keys = keys
        self.patients = frozenset(patients)
        #: those of whom anything was seen
        self.seen: set[int] = set()

    def is_patient(self, resource_id: str) -> bool:
        key = self.keys.of("Patient", resource_id)
        if key not in self.patients:
            return False
        self.seen.add(key)
        return True

    def named_in(self, data: bytes) -> bool:
        """Whether whole lines name one of them. Reads bytes only: about 0.3 GB/s."""
        found: set[bytes] = set()
        for before in _BEFORE_ID:
            if before in data:
                # Splitting finds a word many times faster than a pattern; most of what follows is the same few ids.
                parts = data.split(before)
                tokens = {part[:_LONGEST_ID].partition(b'"')[0] for part in parts[1:]}
                found.update(match[0] for token in tokens if (match := _ID_AT_START.match(token)))
        if b'"Patient"' in data and _IS_PATIENT.search(data):
            found.update(_ID.findall(data))
        return any(self.is_patient(token.decode("utf-8", "replace")) for token in found)


@dataclass
class Owned:
    """Resources that are theirs, as (type, id), and ids of Binaries to which these lead."""

    resources: set[tuple[str, str]] = field(default_factory=set)
    binaries: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.resources or self.binaries)


@dataclass(frozen=True, slots=True)
class OwnedLine:
    """What is to become of a line. `content` is what stays of a shared one, never longer than it was; None: nothing."""

    verdict: Verdict
    resource_type: str | None = None
    resource_id: str | None = None
    content: bytes | None = None
    #: ids of Binaries that it attaches
    binaries: frozenset[str] = frozenset()
    #: surrogate ids of other Patients who are the same person by this line
    same_person: frozenset[int] = frozenset()


def judged(raw: bytes, persons: ErasedPersons, owned: Owned | None = None) -> OwnedLine | None:
    """Whose a line is; None: it has nothing to do with them. `owned` adds the lines that follow what they are about."""
    if owned is None and not persons.named_in(raw):
        return None
    try:
        resource = _decoded(raw)
    except (ValueError, RecursionError):
        return OwnedLine("theirs") if persons.named_in(raw) else None
    verdict = _verdict(resource, persons, owned)
    if verdict is None:
        return None
    resource_type, resource_id = _text(resource.get("resourceType")), _text(resource.get("id"))
    same = frozenset(_same_person(resource, persons))
    if verdict == "theirs":
        return OwnedLine("theirs", resource_type, resource_id, None, frozenset(_binaries(resource)), same)
    return OwnedLine("shared", resource_type, resource_id, _without(resource, raw, persons, owned), same_person=same)


def _verdict(resource: dict[str, Any], persons: ErasedPersons, owned: Owned | None) -> Verdict | None:
    resource_type, resource_id = resource.get("resourceType"), resource.get("id")
    named = set(_patients_in(resource))
    erased = {patient for patient in named if persons.is_patient(patient)}
    if resource_type == "Patient":
        if isinstance(resource_id, str) and persons.is_patient(resource_id):
            return "theirs"
        return "shared" if erased else None
    if erased and resource_type not in _DIRECTORY:
        owners = {patient for name in _OWNERS for patient in _patients_in(resource.get(name))} or named
        return "theirs" if owners <= erased else "shared"
    if erased:
        return "shared"
    if owned and resource_type in ABOUT_TYPES and not named:
        return _by_what_it_is_about(resource, owned)
    return None


def _by_what_it_is_about(resource: dict[str, Any], owned: Owned) -> Verdict | None:
    if resource.get("resourceType") == "Binary":
        return "theirs" if resource.get("id") in owned.binaries else None
    about = {found for text in _texts(resource) if (found := _target(text)) and found[0] not in _DIRECTORY}
    theirs = {found for found in about if found in owned.resources}
    if not theirs:
        return None
    return "theirs" if theirs == about else "shared"


def _patients_in(value: Any) -> Iterator[str]:
    """Ids of the Patients whom an element names: by reference, in any text, or as resources inside of a Bundle."""
    for text in _texts(value):
        for _, patient in _NAMED_IN_TEXT.findall(text):
            yield patient
    yield from _inner_patients(value)


def _inner_patients(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        inner = value.get("resource")
        if isinstance(inner, dict) and inner.get("resourceType") == "Patient" and isinstance(inner.get("id"), str):
            yield inner["id"]
        for item in value.values():
            yield from _inner_patients(item)
    elif isinstance(value, list):
        for item in value:
            yield from _inner_patients(item)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


def _target(text: str) -> tuple[str, str] | None:
    return parse_reference(text) if "/" in text else None


def _binaries(resource: dict[str, Any]) -> Iterator[str]:
    """Ids of the Binaries to which a resource of theirs leads."""
    for text in _texts(resource):
        if "Binary/" in text and (found := _target(text.split("?", 1)[0])) and found[0] == "Binary":
            yield found[1]


def _same_person(resource: dict[str, Any], persons: ErasedPersons) -> Iterator[int]:
    """Patients who are the same person as an erased one: by a Patient's links, in either direction."""
    links = resource.get("link")
    if resource.get("resourceType") != "Patient" or not isinstance(links, list):
        return
    own = resource.get("id")
    others = [
        patient
        for link in links
        if isinstance(link, dict) and link.get("type") in _SAME_PERSON
        for patient in _patients_in(link.get("other"))
    ]
    every = [*others, own] if isinstance(own, str) else others
    if any(persons.is_patient(patient) for patient in every):
        yield from (persons.keys.of("Patient", patient) for patient in every if not persons.is_patient(patient))


# --- what stays of a shared line ------------------------------------------------------------------------------------


def _without(resource: dict[str, Any], raw: bytes, persons: ErasedPersons, owned: Owned | None) -> bytes | None:
    """The line without the person; None where that would be longer than it was, or cannot be written."""
    try:
        content = orjson.dumps(_cleaned(resource, persons, owned))
    except (orjson.JSONEncodeError, RecursionError):  # half of a surrogate pair: no load could read the line either
        return None
    return content if len(content) <= len(raw) else None


def _cleaned(value: Any, persons: ErasedPersons, owned: Owned | None) -> Any:
    if isinstance(value, str):
        return _NAMED_IN_TEXT.sub(lambda match: _crossed_out(match, persons), value)
    if isinstance(value, list):
        return [_cleaned(item, persons, owned) for item in value]
    if not isinstance(value, dict):
        return value
    reference, nested = value.get("reference"), value.get("resource")
    if isinstance(reference, str) and _leads_to_them(reference, persons, owned):
        return _GONE
    if isinstance(nested, dict) and _verdict(nested, persons, owned) == "theirs":
        return _GONE_ENTRY
    return {name: _cleaned(item, persons, owned) for name, item in value.items()}


def _leads_to_them(reference: str, persons: ErasedPersons, owned: Owned | None) -> bool:
    if any(persons.is_patient(patient) for _, patient in _NAMED_IN_TEXT.findall(reference)):
        return True
    return owned is not None and _target(reference) in owned.resources


def _crossed_out(match: re.Match[str], persons: ErasedPersons) -> str:
    before, patient = match.groups()
    return f"{before}{'x' * len(patient)}" if persons.is_patient(patient) else match[0]


# --- bundles of deletions -------------------------------------------------------------------------------------------


def judged_deletions(raw: bytes, persons: ErasedPersons, owned: Owned) -> tuple[OwnedLine, list[int]] | None:
    """The Bundle of deletions as it is rewritten, and which of its entries (from 0) are theirs; None: none is.

    Entries keep their places: each is counted.
    """
    try:
        bundle = _decoded(raw)
    except (ValueError, RecursionError):
        return (OwnedLine("theirs"), []) if persons.named_in(raw) else None
    entries = bundle.get("entry")
    if not isinstance(entries, list):
        return None
    theirs = [number for number, entry in enumerate(entries) if _deletes_theirs(entry, persons, owned)]
    if not theirs:
        return None
    for number in theirs:
        entries[number] = _GONE_ENTRY
    content = orjson.dumps(bundle)
    return OwnedLine("shared", "Bundle", None, content if len(content) <= len(raw) else None), theirs


def _deletes_theirs(entry: Any, persons: ErasedPersons, owned: Owned) -> bool:
    request = entry.get("request") if isinstance(entry, dict) else None
    url = request.get("url") if isinstance(request, dict) else None
    if not isinstance(url, str):
        return False
    target = _target(url) or (None, "")
    is_theirs = target in owned.resources or (target[0] == "Binary" and target[1] in owned.binaries)
    return is_theirs or any(persons.is_patient(patient) for _, patient in _NAMED_IN_TEXT.findall(url))


def _decoded(raw: bytes) -> dict[str, Any]:
    """The resource of a line, its numbers as they are written. Raises ValueError for what is none."""
    found = json.loads(raw, parse_float=_as_written, parse_int=_as_written, parse_constant=_no_number)
    if not isinstance(found, dict):
        raise ValueError("not a resource")  # noqa: TRY004 - like a line that is not valid JSON
    return found


def _as_written(number: str) -> orjson.Fragment:
    return orjson.Fragment(number.encode())


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
