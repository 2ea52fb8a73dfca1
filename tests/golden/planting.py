"""Identifying values planted into FHIR resources, wherever R4 can hold them, each one unmistakable.

Names, identifiers, contacts, addresses, photographs, notes, narratives, contained persons, displays of references and
codes, texts of concepts, serial and policy numbers. What the mapping takes as text on purpose (instructions for use,
values that are strings, units) is not planted: docs/mapping.md names it.
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Callable
from typing import Any

from pipeline.sql_on_fhir.r4 import Types, elements_of, is_array

__all__ = ["Planter"]

_MARK = re.compile(r"qx\d{6}zz|88\d{8}|60699", re.IGNORECASE)

#: Texts that identify by what they are, by the type that has them.
_TEXTS = {
    "Appointment": ("description", "comment", "patientInstruction"),
    "CarePlan": ("title", "description"),
    "Coverage": ("subscriberId", "dependent"),
    "CoverageClass": ("value", "name"),
    "Device": ("serialNumber",),
    "DeviceDeviceName": ("name",),
    "DiagnosticReport": ("conclusion",),
    "DocumentReference": ("description",),
    "Dosage": ("patientInstruction",),
    "FamilyMemberHistory": ("name",),
    "ServiceRequest": ("patientInstruction",),
}


class Planter:
    """Plants, and remembers what it planted where."""

    def __init__(self) -> None:
        #: Planted value in lower case → where: `Patient.name.family`.
        self.planted: dict[str, str] = {"60699": "postalCode of an address"}
        self._make: dict[str, Callable[[str], Any]] = {
            "HumanName": self._name,
            "Identifier": self._identifier,
            "ContactPoint": lambda path: {"system": "phone", "value": self.digits(path), "use": "home"},
            "Address": self._address,
            "Attachment": self._attachment,
            "Annotation": lambda path: {"text": self.text(path), "authorString": self.text(path)},
            "Narrative": lambda path: {"status": "generated", "div": f"<div>{self.text(path)}</div>"},
            "CodeableConcept": lambda path: {"text": self.text(path)},
        }

    def text(self, path: str) -> str:
        return self._remembered(f"Qx{len(self.planted):06d}zz", path)

    def digits(self, path: str) -> str:
        return self._remembered(f"88{len(self.planted):08d}", path)

    def _remembered(self, mark: str, path: str) -> str:
        self.planted[mark.lower()] = path
        return mark

    def found(self, text: str) -> list[str]:
        """Where the planted values that a text holds came from."""
        marks = (match.group().lower() for match in _MARK.finditer(text))
        return [self.planted[mark] for mark in marks if mark in self.planted]

    def plant(self, resource: dict[str, Any]) -> dict[str, Any]:
        """A copy of the resource with identifying values in every place; a type that R4 does not have stays."""
        planted = copy.deepcopy(resource)
        kind = planted["resourceType"]
        if elements_of(kind) is not None:
            self._element(planted, kind, kind)
            contained = planted.get("contained")
            if contained is None or isinstance(contained, list):
                planted["contained"] = [*(contained or ()), *self._persons(f"{kind}.contained")]
        if kind == "Patient":
            planted["extension"] = [*planted.get("extension", ()), *self._extensions()]
        return planted

    def _element(self, element: Any, kind: str, path: str) -> None:
        elements = elements_of(kind)
        if not isinstance(element, dict) or elements is None:
            return
        for name, value in list(element.items()):
            types = _types_of(elements, name)
            for item in value if isinstance(value, list) else [value]:
                self._present(item, types, f"{path}.{name}")
        for name, types in elements.items():
            [*known] = types or ()
            if len(known) == 1 and known[0] in self._make and not _is_allowed(kind, name):
                self._absent(element, kind, name, known[0], f"{path}.{name}")
        for name in _TEXTS.get(kind, ()):
            element[name] = self.text(f"{path}.{name}")

    def _absent(self, element: dict[str, Any], owner: str, name: str, kind: str, path: str) -> None:
        """Add an element that is not there; to a list of them, one more."""
        if not is_array(owner, name):
            element.setdefault(name, self._make[kind](path))
        elif kind != "CodeableConcept":
            old = element.get(name, [])
            element[name] = [self._make[kind](path), *old] if isinstance(old, list) else old
        elif name not in element:
            element[name] = [self._make[kind](path)]

    def _present(self, value: Any, types: Types, path: str) -> None:
        [*known] = types or ()
        if len(known) != 1 or not isinstance(value, dict):
            return
        kind = known[0]
        if kind == "Reference":
            value["display"] = self.text(path)
            if "reference" in value:
                value.setdefault("identifier", self._identifier(path))
        elif kind == "CodeableConcept":
            value["text"] = self.text(path)
            for coding in value.get("coding") or ():
                if isinstance(coding, dict):
                    coding["display"] = self.text(f"{path}.coding")
        elif kind == "Coding":
            value["display"] = self.text(path)
        elif kind not in self._make:
            self._element(value, kind, path)

    # --- what is planted ---

    def _name(self, path: str) -> dict[str, Any]:
        parts = {name: self.text(f"{path}.{name}") for name in ("text", "family")}
        lists = {name: [self.text(f"{path}.{name}")] for name in ("given", "prefix", "suffix")}
        return {"use": "official", **parts, **lists}

    def _identifier(self, path: str) -> dict[str, Any]:
        coding = {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "MR", "display": self.text(path)}
        return {
            "system": "urn:oid:1.2.840.114350.1.13.0.1.7.5.737384.0",
            "value": self.digits(path),
            "type": {"coding": [coding], "text": self.text(path)},
            "assigner": {"display": self.text(path)},
        }

    def _address(self, path: str) -> dict[str, Any]:
        texts = {name: self.text(f"{path}.{name}") for name in ("text", "city", "district", "country")}
        line = [self.text(f"{path}.line")]
        return {"use": "home", **texts, "line": line, "state": "IL", "postalCode": "60699-1234"}

    def _attachment(self, path: str) -> dict[str, Any]:
        data = base64.b64encode(self.text(f"{path}.data").encode()).decode()
        self.planted[data.lower()] = path
        address = f"https://example.org/{self.text(f'{path}.url')}"
        return {"contentType": "text/plain", "title": self.text(path), "data": data, "url": address}

    def _persons(self, path: str) -> list[dict[str, Any]]:
        more = {"birthDate": "1960-05-04", "gender": "female"}
        shared = lambda: {"name": [self._name(path)], "telecom": [self._make["ContactPoint"](path)]}  # noqa: E731
        return [
            {
                "resourceType": "Patient",
                "id": "planted-patient",
                "identifier": [self._identifier(path)],
                **shared(),
                **more,
            },
            {"resourceType": "RelatedPerson", "id": "planted-relative", **shared()},
        ]

    def _extensions(self) -> list[dict[str, Any]]:
        base = "http://hl7.org/fhir/StructureDefinition/patient-"
        return [
            {"url": f"{base}mothersMaidenName", "valueString": self.text("Patient.mothersMaidenName")},
            {"url": f"{base}birthPlace", "valueAddress": self._address("Patient.birthPlace")},
        ]


def _types_of(elements: Any, name: str) -> Types:
    """The type of an element as JSON names it: also `valueQuantity`."""
    if name in elements:
        found: Types = elements[name]
        return found
    for choice, types in elements.items():
        for kind in types or ():
            if name == choice + kind[:1].upper() + kind[1:]:
                return frozenset({kind})
    return None


def _is_allowed(kind: str, name: str) -> bool:
    """Addresses of sites, and what would make the resource another one."""
    return (kind in {"Organization", "Location"} and name == "address") or name in {"value", "valueCodeableConcept"}
