"""Converters of view columns: each turns one FHIR value into what a column holds, while the view runs.

They give None where there is nothing to say, and raise AttributeError, TypeError or ValueError for a shape that FHIR
does not allow: the line is then a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.omop.code_sets import CodeSets

#: Quantity.comparator → the name of its concept in constants.csv.
COMPARATORS = {
    "<": "operator_less",
    "<=": "operator_less_or_equal",
    ">=": "operator_greater_or_equal",
    ">": "operator_greater",
}

_OTHER_VALUES = ("valueRange", "valueRatio", "valueSampledData", "valueTime", "valueDateTime", "valuePeriod")


def other_value(element: dict[str, Any]) -> str | None:
    """Text of the value types that OMOP has no column for, None for the others."""
    for name in _OTHER_VALUES:
        if name in element:
            return _value_text(name, element[name])
    return None


def _value_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "valueRange":
        return f"{_quantity_text(value.get('low'))} - {_quantity_text(value.get('high'))}".strip()
    if name == "valueRatio":
        return f"{_quantity_text(value.get('numerator'))}/{_quantity_text(value.get('denominator'))}"
    if name == "valuePeriod":
        return f"{value.get('start', '')}/{value.get('end', '')}"
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
