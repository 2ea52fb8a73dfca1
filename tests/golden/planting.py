"""Identifying values planted into FHIR resources, wherever R4 can hold them, each one unmistakable.

Names, identifiers, contacts, addresses, photographs, notes, narratives, contained persons, and every element of type
string or markdown that R4 has (`r4_strings.csv`, made from the definitions of R4, CC0), also in elements that a resource
does not have of itself. `SHOWN` says which of them may be seen in the CDM, where, and why; nothing else may.
"""

from __future__ import annotations

import base64
import copy
import csv
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.sql_on_fhir.r4 import Types, elements_of, is_array

__all__ = ["SHOWN", "Planter", "may_be_seen", "strings_of"]

_MARK = re.compile(r"qx\d{6}zz|88\d{8}|60699", re.IGNORECASE)

#: Strings that are no text: who reads them follows them, and a planted one would only break what it is in.
_POINTERS = {("Reference", "reference"), ("QuestionnaireItem", "linkId"), ("QuestionnaireResponseItem", "linkId")}

#: Elements that are added with all they can hold; deeper ones only where a resource has what they are in.
_MOST_DEPTH = 3

#: (table.column, path of the planted element; both may hold `*`) → why it may be seen there. docs/mapping.md, Privacy.
SHOWN = {
    ("care_site.care_site_name", "Location.name"): "the name of a site; that of a home is not loaded",
    ("care_site.care_site_name", "Organization.name"): "the name of a site: of a single doctor's practice it is public",
    ("location.address_1", "Location.address.line"): "where a site is",
    ("location.address_1", "Organization.address.line"): "where a site is",
    ("location.city", "Location.address.city"): "where a site is",
    ("location.city", "Organization.address.city"): "where a site is",
    ("location.country_source_value", "Location.address.country"): "where a site is",
    ("location.country_source_value", "Organization.address.country"): "where a site is",
    ("payer_plan_period.payer_source_value", "Coverage.payor"): "the name of an organization that pays",
    ("payer_plan_period.plan_source_value", "Coverage.type"): "what kind of insurance it is",
    ("drug_exposure.sig", "*.dosageInstruction.text"): "instructions for use: the CDM has a column for them",
    ("drug_exposure.sig", "*.dosage.text"): "instructions for use: the CDM has a column for them",
    ("drug_exposure.sig", "*.dosage.*.unit"): "the unit of a dose",
    ("drug_exposure.dose_unit_source_value", "*.unit"): "the unit of a dose",
    ("drug_exposure.lot_number", "*.lotNumber"): "the lot of a vaccine or drug: many have it",
    ("device_exposure.production_id", "*.lotNumber"): "the lot of a device: many have it",
    ("measurement.unit_source_value", "*.unit"): "the unit of a result",
    ("specimen.unit_source_value", "*.unit"): "the unit of a quantity",
    ("measurement.value_source_value", "*.valueString"): "a result that is a text",
    ("observation.value_source_value", "*.valueString"): "a result that is a text",
    ("observation.value_as_string", "*.valueString"): "a result that is a text",
    ("measurement.value_source_value", "*.value*.unit"): "the unit of a result of two numbers",
    ("device_exposure.unique_device_id", "Device.udiCarrier.deviceIdentifier"): "a model of device, public",
    ("measurement.value_source_value", "*.valueSampledData.data"): "the numbers of a curve",
    ("condition_occurrence.stop_reason", "Condition.abatementString"): "why a condition ended",
}


@cache
def _strings() -> dict[str, tuple[str, ...]]:
    """Type → its elements of type string or markdown; `*`: an array."""
    with Path(__file__).with_name("r4_strings.csv").open(encoding="utf-8", newline="") as stream:
        return {row["type"]: tuple(row["elements"].split()) for row in csv.DictReader(stream)}


def strings_of(kind: str) -> list[str]:
    """Paths below a type of its strings, and of those of the parts that only it has."""
    own = [name.removesuffix("*") for name in _strings().get(kind, ()) if (kind, name) not in _POINTERS]
    parts = [(name, types) for name, types in (elements_of(kind) or {}).items() for types in [*(types or ())]]
    return own + [
        f"{name}.{inner}"
        for name, part in parts
        if part.startswith(kind) and part != kind
        for inner in strings_of(part)
    ]


def is_home(location: dict[str, Any]) -> bool:
    """Whether the golden cases mean a Location to be where a person lives."""
    return location["resourceType"] == "Location" and str(location.get("name")).startswith(("Home of", "Qx Place"))


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
            self._element(planted, kind, "Home" if is_home(resource) else kind)
            contained = planted.get("contained")
            if contained is None or isinstance(contained, list):
                planted["contained"] = [*(contained or ()), *self._persons(f"{kind}.contained")]
        if kind == "Patient":
            planted["extension"] = [*planted.get("extension", ()), *self._extensions()]
        return planted

    def _element(self, element: Any, kind: str, path: str, depth: int = 0) -> None:
        elements = elements_of(kind)
        if not isinstance(element, dict) or elements is None:
            return
        for name, value in list(element.items()):
            types = _types_of(elements, name)
            for item in value if isinstance(value, list) else [value]:
                self._present(item, types, f"{path}.{name}", depth)
        for name, types in elements.items():
            [*known] = types or ()
            if len(known) != 1 or _is_value(name):
                continue
            if known[0] in self._make:
                self._absent(element, kind, name, known[0], f"{path}.{name}")
            elif name not in element and known[0].startswith(kind) and known[0] != kind and depth < _MOST_DEPTH:
                part: dict[str, Any] = {}
                self._element(part, known[0], f"{path}.{name}", depth + 1)
                element[name] = [part] if is_array(kind, name) else part
        for name, is_list in self._strings_of(element, kind, elements):
            text = self.text(f"{path}.{name}")
            element[name] = [text] if is_list else text

    def _strings_of(self, element: dict[str, Any], kind: str, elements: Any) -> Iterator[tuple[str, bool]]:
        """Names of the element's strings, whether they are there or not, and whether each is an array."""
        for name in _strings().get(kind, ()):
            if (kind, name) not in _POINTERS:
                yield name.removesuffix("*"), name.endswith("*")
        for name, types in elements.items():
            if "string" in (types or ()):
                is_given = any(key.startswith(name) and key[len(name) :][:1].isupper() for key in element)
                if f"{name}String" in element or not (is_given or kind == "Extension"):
                    yield f"{name}String", False

    def _absent(self, element: dict[str, Any], owner: str, name: str, kind: str, path: str) -> None:
        """Add an element that is not there; to a list of them, one more."""
        if not is_array(owner, name):
            if kind == "Address" or name not in element:
                element[name] = self._make[kind](path)
        elif kind != "CodeableConcept":
            old = element.get(name, [])
            element[name] = [self._make[kind](path), *old] if isinstance(old, list) else old
        elif name not in element:
            element[name] = [self._make[kind](path)]

    def _present(self, value: Any, types: Types, path: str, depth: int) -> None:
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
            self._element(value, kind, path, depth)

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
        is_site = path.startswith(("Location.", "Organization."))
        if is_site:  # whose use says that it is one
            return {"use": "work", **texts, "line": line, "state": "TX", "postalCode": "77701-1234"}
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


def _is_value(name: str) -> bool:
    """What would make the resource another one."""
    return name in {"value", "valueCodeableConcept"}


def may_be_seen(column: str, path: str) -> bool:
    """Whether `SHOWN` allows a planted value in a column (`table.column`)."""
    return any(fnmatchcase(column, where) and fnmatchcase(path, what) for where, what in SHOWN)
