"""Converters of view columns: each turns one FHIR value into what a column holds, while the view runs.

They give None where there is nothing to say, and raise AttributeError, TypeError or ValueError for a shape that FHIR
does not allow: the line is then a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from pipeline.omop.code_sets import CodeSets
from pipeline.omop.keys import SurrogateKeys, parse_reference

#: Quantity.comparator → the name of its concept in constants.csv.
COMPARATORS = {
    "<": "operator_less",
    "<=": "operator_less_or_equal",
    ">=": "operator_greater_or_equal",
    ">": "operator_greater",
}

_OTHER_VALUES = (
    "valueRange",
    "valueRatio",
    "valueSampledData",
    "valueTime",
    "valueDateTime",
    "valuePeriod",
    "valueDate",
    "valueUri",
)


def other_value(element: dict[str, Any]) -> str | None:
    """Text of the value types that OMOP has no column for, None for the others."""
    for name in _OTHER_VALUES:
        if name in element:
            return _value_text(name, element[name]) or None
    return None


def _value_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "valueRange":
        return f"{_quantity_text(value.get('low'))} - {_quantity_text(value.get('high'))}".strip()
    if name == "valueRatio":
        return f"{_quantity_text(value.get('numerator'))}/{_quantity_text(value.get('denominator'))}"
    if name == "valuePeriod":
        return period_text(value)
    return str(value.get("data", ""))


def _quantity_text(value: Any) -> str:
    if not value:
        return ""
    return f"{value.get('comparator', '')}{value.get('value', '')} {value.get('unit', value.get('code', ''))}".strip()


def comparator(value: str) -> str | None:
    """A Quantity's comparator, None for "=". It is a modifier: one that is not known is refused (f2o-063)."""
    if value == "=":
        return None
    if value not in COMPARATORS:
        raise ValueError("expected one of < <= >= > =")
    return value


def integer32(value: int) -> int:
    """FHIR's integers have 32 bits, and so have the columns: a larger one would make PostgreSQL refuse a whole load."""
    if value.__class__ is not int:
        raise TypeError("expected an integer")
    if not -(2**31) <= value < 2**31:
        raise ValueError("expected an integer of 32 bits")
    return value


def diagnosis_use(diagnosis: dict[str, Any]) -> str | None:
    """Key of the value map diagnosis_use: the role's code where it is one of AD and DD, else by rank."""
    for coding in (diagnosis.get("use") or {}).get("coding") or ():
        if coding.get("code") in {"AD", "DD"}:
            return str(coding["code"])
    rank = diagnosis.get("rank")
    return None if rank is None else "1" if rank == 1 else "other"


def period_text(period: dict[str, Any]) -> str:
    """'start/end', either may be empty."""
    return f"{period.get('start') or ''}/{period.get('end') or ''}"


def age_text(age: dict[str, Any]) -> str | None:
    """An Age as '45 a' (UCUM code), None without value or code."""
    value, code = age.get("value"), age.get("code")
    return None if value is None or code is None else f"{value} {code}"


def dosage_text(resource: dict[str, Any]) -> str | None:
    """sig: the texts of all dosage instructions (of a request or dispense) or dosages (of a statement), in order."""
    dosages = resource.get("dosageInstruction") or resource.get("dosage") or ()
    texts = [dosage["text"] for dosage in dosages if dosage.get("text")]
    return "; ".join(texts) or None


def administration_text(dosage: dict[str, Any]) -> str | None:
    """sig of an administration: the dosage's text, its dose and its rate: 'slowly; 500 mg; 100 mL/h'."""
    rate = dosage.get("rateRatio")
    rate_text = _value_text("valueRatio", rate) if rate else _quantity_text(dosage.get("rateQuantity"))
    return "; ".join(filter(None, (dosage.get("text"), _quantity_text(dosage.get("dose")), rate_text))) or None


_PERIOD_DAYS = {"h": 1 / 24, "d": 1.0, "wk": 7.0}


def daily_dose(request: dict[str, Any]) -> float | None:
    """Dose a day in the unit of the dispensed quantity; None where units differ or anything is missing.

    Never invented: tablets are not divided by milligrams.
    """
    quantity = (request.get("dispenseRequest") or {}).get("quantity") or {}
    dosage = (request.get("dosageInstruction") or [{}])[0]
    dose = ((dosage.get("doseAndRate") or [{}])[0]).get("doseQuantity") or {}
    repeat = (dosage.get("timing") or {}).get("repeat") or {}
    unit, dose_unit = (part.get("code") or part.get("unit") for part in (quantity, dose))
    days = _PERIOD_DAYS.get(str(repeat.get("periodUnit")))
    if not unit or unit != dose_unit or not days or not repeat.get("period") or not dose.get("value"):
        return None
    return float(dose["value"] * repeat.get("frequency", 1) / (repeat["period"] * days))


def medication_code(sets: CodeSets) -> Callable[[dict[str, Any]], int | None]:
    """Converter MedicationRequest → code set of its medication, None where that is another resource."""

    def convert(request: dict[str, Any]) -> int | None:
        concept = request.get("medicationCodeableConcept")
        if concept is not None:
            return sets.add_concept(concept)
        reference = (request.get("medicationReference") or {}).get("reference")
        if isinstance(reference, str) and reference.startswith("#"):
            for contained in request.get("contained") or ():
                if contained.get("id") == reference[1:] and contained.get("code"):
                    return sets.add_concept(contained["code"])
        return None

    return convert


def canonical(url: str) -> str:
    """A canonical URL without version and fragment."""
    return url.partition("|")[0].partition("#")[0]


def canonical_key(keys: SurrogateKeys) -> Callable[[str], int]:
    """Converter canonical URL → surrogate id: that of the resource which the URL's end names, else of the URL itself."""

    def convert(url: str) -> int:
        plain = canonical(url)
        parsed = parse_reference(plain)
        resource_type, resource_id = parsed if parsed and parsed[0] == "Questionnaire" else ("Questionnaire", plain)
        return keys.of(resource_type, resource_id)

    return convert


def questionnaire_codes(questionnaire: dict[str, Any]) -> str | None:
    """The codings of all items as JSON, linkId → [Coding]; None where no item has one."""
    codes: dict[str, list[dict[str, Any]]] = {}
    items = [*questionnaire.get("item", ())]
    for item in items:
        items += item.get("item", ())
        found = [_bare_coding(coding) for coding in item.get("code", ())]
        if found and item.get("linkId"):
            codes[item["linkId"]] = found
    return orjson.dumps(codes, option=orjson.OPT_SORT_KEYS).decode() if codes else None


def item_code(item: dict[str, Any]) -> str | None:
    """What an answered item says of its question's code, as JSON: {"extension": [Coding], "definition": [Coding]}.

    An extension counts whose URL ends in "code" and whose value is a Coding or CodeableConcept. A definition is a code
    where its URL is a code system's and the code: `http://loinc.org/44250-9`.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for extension in item.get("extension", ()):
        if extension.get("url", "").lower().endswith("code"):
            concept = extension.get("valueCodeableConcept") or {"coding": [extension.get("valueCoding") or {}]}
            found.setdefault("extension", []).extend(_bare_coding(coding) for coding in concept.get("coding", ()))
    definition = item.get("definition")
    if definition:
        system, separator, code = definition.rpartition("#" if "#" in definition else "/")
        if separator and system and code:
            found["definition"] = [{"system": system, "code": code}]
    return orjson.dumps(found).decode() if found else None


def _bare_coding(coding: dict[str, Any]) -> dict[str, Any]:
    return {name: coding[name] for name in ("system", "code", "userSelected") if name in coding}
