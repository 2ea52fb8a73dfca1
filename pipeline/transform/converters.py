"""Converters of view columns: each turns one FHIR value into what a column holds, while the view runs.

They give None where there is nothing to say, and raise AttributeError, TypeError or ValueError for a shape that FHIR
does not allow: the line is then a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import orjson

from pipeline.fhir.datetimes import is_calendar_date, is_sentinel
from pipeline.fhir.identity import SurrogateKeys, parse_reference
from pipeline.transform.concepts.code_sets import CodeSets

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
_IS_OTHER_VALUE = frozenset(_OTHER_VALUES)


def other_value(element: dict[str, Any]) -> str | None:
    """Text of the value types that OMOP has no column for, None for the others."""
    if element.__class__ is dict and element.keys().isdisjoint(_IS_OTHER_VALUE):
        return None
    for name in _OTHER_VALUES:
        if name in element:
            return _value_text(name, element[name]) or None
    return None


def _value_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "valueRange":
        return f"{quantity_text(value.get('low'))} - {quantity_text(value.get('high'))}".strip()
    if name == "valueRatio":
        return f"{quantity_text(value.get('numerator'))}/{quantity_text(value.get('denominator'))}"
    if name == "valuePeriod":
        return period_text(value)
    return str(value.get("data", ""))


def quantity_text(value: Any) -> str:
    """'500 mg', with its comparator if any; '' for none."""
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


#: FHIR's codes of the two statuses of conditions and allergies.
VERIFICATION_STATUSES = frozenset(
    ("unconfirmed", "presumed", "provisional", "differential", "confirmed", "refuted", "entered-in-error")
)
CLINICAL_STATUSES = frozenset(("active", "recurrence", "relapse", "inactive", "remission", "resolved"))


def status_code(known: frozenset[str]) -> Callable[[dict[str, Any]], str | None]:
    """Converter CodeableConcept → its code of FHIR's list, whatever other codes stand before it; else its first code."""

    def convert(concept: dict[str, Any]) -> str | None:
        codes = [code for coding in concept.get("coding") or () if (code := coding.get("code")) is not None]
        if any(code.__class__ is not str for code in codes):
            raise ValueError("expected a string")
        return next((code for code in codes if code in known), next(iter(codes), None))

    return convert


#: "Patient not asked" of SNOMED's US edition, with which Epic says that nobody has asked for allergies.
_NOT_ASKED = "1631000175102"
_NOT_ON_FILE = frozenset(("not on file", "not asked", "patient not asked"))
_DATES_OF_ALLERGY = ("recordedDate", "lastOccurrence", "onsetDateTime", "onsetPeriod", "onsetAge", "encounter")


def is_not_on_file(allergy: dict[str, Any]) -> bool | None:
    """True for an AllergyIntolerance that only says that nothing is known, and has no date; else None."""
    code = allergy.get("code") or {}
    codings = code.get("coding") or ()
    texts = [code.get("text"), *(coding.get("display") for coding in codings)]
    says_it = any(coding.get("code") == _NOT_ASKED for coding in codings) or any(
        text.__class__ is str and text.casefold() in _NOT_ON_FILE for text in texts
    )
    return True if says_it and not any(allergy.get(name) for name in _DATES_OF_ALLERGY) else None


def integer32(value: int) -> int:
    """FHIR's integers have 32 bits, and so have the columns: a larger one would make PostgreSQL refuse a whole load."""
    if value.__class__ is not int:
        raise TypeError("expected an integer")
    if not -(2**31) <= value < 2**31:
        raise ValueError("expected an integer of 32 bits")
    return value


def period_text(period: dict[str, Any]) -> str:
    """'start/end', either may be empty."""
    return f"{period.get('start') or ''}/{period.get('end') or ''}"


def age_text(age: dict[str, Any]) -> str | None:
    """An Age as '45 a' (UCUM code, else the unit as it is written), with its comparator; None without value or unit."""
    value, code = age.get("value"), age.get("code") or age.get("unit")
    inexact = comparator(age["comparator"]) if age.get("comparator") else None
    return None if value is None or code is None else f"{inexact or ''}{value} {code}"


def dosage_text(resource: dict[str, Any]) -> str | None:
    """sig: the texts of all dosage instructions (of a request or dispense) or dosages (of a statement), in order."""
    dosages = resource.get("dosageInstruction") or resource.get("dosage") or ()
    texts = [dosage["text"] for dosage in dosages if dosage.get("text")]
    return "; ".join(texts) or None


def rate_text(dosage: dict[str, Any]) -> str | None:
    """The rate of an administration: '100 mL/h', '50 mL/1 h'."""
    rate = dosage.get("rateRatio")
    return (_value_text("valueRatio", rate) if rate else quantity_text(dosage.get("rateQuantity"))) or None


def dosage_end(request: dict[str, Any]) -> str | None:
    """The last end (FHIR date string) of the bounds of all dosage instructions, among those that are dates."""
    ends = _bounds_ends(request)
    return max(filter(is_calendar_date, ends), default=None) if ends else None


def dosage_end_unusable(request: dict[str, Any]) -> str | None:
    """The first end of the bounds of dosage instructions that is not a valid date, for an issue; None where all are."""
    ends = _bounds_ends(request)
    return next((end for end in ends if not is_calendar_date(end)), None) if ends else None


def dosage_start(request: dict[str, Any]) -> str | None:
    """The first start (FHIR date string) of the bounds of all dosage instructions, among those that are dates."""
    starts = _bounds(request, "start")
    return min(filter(is_calendar_date, starts), default=None) if starts else None


def dosage_start_unusable(request: dict[str, Any]) -> str | None:
    """The first start of the bounds of dosage instructions that is not a valid date, for an issue; None where all are."""
    starts = _bounds(request, "start")
    return next((start for start in starts if not is_calendar_date(start)), None) if starts else None


def _bounds_ends(request: dict[str, Any]) -> list[str]:
    return _bounds(request, "end")


def _bounds(request: dict[str, Any], edge: str) -> list[str]:
    periods = [_repeat(dosage).get("boundsPeriod") for dosage in _instructions(request)]
    dates = [date for period in periods if period and (date := period.get(edge))]
    if any(date.__class__ is not str for date in dates):
        raise ValueError(f"expected the {edge} of a period to be a string")
    return dates


def usable_event(events: Any) -> str | None:
    """Of the events of a Timing (FHIR date strings) the first that is a date and no sentinel, else what comes nearest."""
    texts = _events(events)
    dates = [text for text in texts if is_calendar_date(text)]
    return next((text for text in dates if not is_sentinel(text)), None) or next(iter(dates or texts), None)


def unusable_event(events: Any) -> str | None:
    """The first event of a Timing that stands before the usable one, for an issue; None where that is the first."""
    texts = _events(events)
    return texts[0] if texts and texts[0] != usable_event(texts) else None


def _events(events: Any) -> list[str]:
    texts = [event for event in (events if events.__class__ is list else [events]) if event is not None]
    if any(text.__class__ is not str for text in texts):
        raise ValueError("expected the events of a Timing to be strings")
    return texts


#: Bounds in these units are a number of days, or of months; a longer one is not a valid length of a treatment.
_LENGTH_DAYS = {"min": 1 / 1440, "h": 1 / 24, "d": 1.0, "wk": 7.0}
_LENGTH_MONTHS = {"mo": 1, "a": 12}
_MOST_DAYS, _MOST_MONTHS = 3650, 120


def dosage_length(request: dict[str, Any]) -> str | None:
    """How long the dosage instructions are followed, by boundsDuration: '10d' or '3mo' (begun days count).

    Instructions with a `sequence` each follow one another, others run side by side. None where a length cannot be
    added to the others, and for a range of lengths: nothing is invented.
    """
    instructions = _instructions(request)
    found = [length for dosage in instructions if (length := _length(_repeat(dosage).get("boundsDuration")))]
    if not found or len({unit for _, unit in found}) > 1:
        return None
    sequences = {dosage.get("sequence") for dosage in instructions}
    one_after_another = None not in sequences and len(sequences) == len(found) == len(instructions)
    numbers = [number for number, _ in found]
    number, unit = sum(numbers) if one_after_another else max(numbers), found[0][1]
    return f"{number}{unit}" if number <= (_MOST_DAYS if unit == "d" else _MOST_MONTHS) else None


def inexact_length(request: dict[str, Any]) -> str | None:
    """The comparator of the first boundsDuration that has one: it is no length, and an issue."""
    bounds = [_repeat(dosage).get("boundsDuration") or {} for dosage in _instructions(request)]
    found = next((one["comparator"] for one in bounds if one.get("comparator")), None)
    return comparator(found) if found else None


def _length(duration: Any) -> tuple[int, str] | None:
    if not duration:
        return None
    value, unit = duration.get("value"), str(duration.get("code") or duration.get("unit"))
    if not value or value <= 0 or value > _MOST_DAYS * 1440 or duration.get("comparator") not in {None, "="}:
        return None
    if unit in _LENGTH_DAYS:
        return ceil(value * _LENGTH_DAYS[unit]), "d"
    months = value * _LENGTH_MONTHS.get(unit, 0)
    return (int(months), "mo") if months and months == int(months) else None


def _instructions(request: dict[str, Any]) -> list[dict[str, Any]]:
    return request.get("dosageInstruction") or []


def _repeat(dosage: dict[str, Any]) -> dict[str, Any]:
    return (dosage.get("timing") or {}).get("repeat") or {}


_PERIOD_DAYS = {"h": 1 / 24, "d": 1.0, "wk": 7.0}


def daily_dose(request: dict[str, Any]) -> float | None:
    """Dose a day in the unit of the dispensed quantity (of a request or a dispense), over all dosage instructions.

    Never invented: tablets are not divided by milligrams. Of several entries of doseAndRate (Epic sends what was
    calculated, what is taken and what was ordered) the one counts whose unit is the quantity's. None where anything is
    missing, where the drug is taken as needed, and where instructions follow one another (`sequence`).
    """
    quantity = (request.get("dispenseRequest") or {}).get("quantity") or request.get("quantity") or {}
    instructions = _instructions(request)
    units = _unit_names(quantity)
    if not units or len({dosage.get("sequence") for dosage in instructions}) > 1:
        return None
    doses = [_daily(dosage, units) for dosage in instructions]
    known = [dose for dose in doses if dose is not None]
    return sum(known) if known and len(known) == len(doses) else None


def _unit_names(quantity: dict[str, Any]) -> set[str]:
    """By what a quantity's unit is recognised: its code, and its text in any case, as one or many."""
    code, unit = quantity.get("code"), quantity.get("unit")
    text = " ".join(unit.split()).casefold() if unit else ""
    return {name for name in (code, text, text.removesuffix("s") if len(text) > _SHORTEST_PLURAL else "") if name}


_SHORTEST_PLURAL = 3


def _daily(dosage: dict[str, Any], units: set[str]) -> float | None:
    entries = (entry.get("doseQuantity") or {} for entry in dosage.get("doseAndRate") or ())
    dose = next((dose for dose in entries if dose.get("value") and not units.isdisjoint(_unit_names(dose))), {})
    repeat = _repeat(dosage)
    days = _PERIOD_DAYS.get(str(repeat.get("periodUnit")))
    as_needed = dosage.get("asNeededBoolean") or dosage.get("asNeededCodeableConcept")
    if not dose or as_needed or not days:
        return None
    if not repeat.get("period"):
        return None
    return float(dose["value"] * repeat.get("frequency", 1) / (repeat["period"] * days))


def pharmacy(sets: CodeSets) -> Callable[[dict[str, Any]], int | None]:
    """Converter MedicationRequest → code set by which a site may list a pharmacy: the identifier of
    dispenseRequest.performer, and its id in the system `Organization`."""

    def convert(request: dict[str, Any]) -> int | None:
        performer = (request.get("dispenseRequest") or {}).get("performer") or {}
        identifier, reference = performer.get("identifier") or {}, performer.get("reference")
        parsed = parse_reference(reference) if isinstance(reference, str) else None
        codings: list[dict[str, Any]] = []
        if parsed and parsed[0] == "Organization":
            codings.append({"system": "Organization", "code": parsed[1]})
        if identifier.get("value"):
            codings.append({"system": identifier.get("system"), "code": identifier["value"]})
        return sets.add_concept({"coding": codings}) if codings else None

    return convert


def merged_types(sets: CodeSets) -> Callable[[dict[str, Any]], int | None]:
    """Converter Location or Organization → one code set of the codings of all its types."""

    def convert(resource: dict[str, Any]) -> int | None:
        types = resource.get("type") or []
        if types.__class__ is not list:
            raise ValueError("expected an array of CodeableConcept")
        codings = [coding for concept in types for coding in concept.get("coding") or ()]
        text = next((concept["text"] for concept in types if concept.get("text")), None)
        return sets.add_concept({"coding": codings, "text": text})

    return convert


#: Parts of US Core's extensions of race and ethnicity that are read as they are.
_CATEGORIES = ("ombCategory", "detailed")
_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"


def other_category(sets: CodeSets) -> Callable[[dict[str, Any]], int | None]:
    """Converter extension of race or ethnicity → code set of what it says in another way than by US Core's codings.

    A CodeableConcept, a code, or only a text; nothing readable is a code set, too. None where it has a coding as US Core
    has it, and where it says why there is none.
    """

    def convert(extension: dict[str, Any]) -> int | None:
        parts = [part for part in extension.get("extension") or () if part.__class__ is dict]
        for part in parts:
            url, coding = part.get("url"), part.get("valueCoding")
            if url == _ABSENT or (coding and url in _CATEGORIES and (coding.get("code") or coding.get("display"))):
                return None
        return other_statement([extension, *parts])

    def other_statement(statements: list[dict[str, Any]]) -> int:
        concepts = [
            part["valueCodeableConcept"] for part in statements if part.get("valueCodeableConcept").__class__ is dict
        ]
        codings = [part["valueCoding"] for part in statements if part.get("valueCoding").__class__ is dict]
        codings += [coding for concept in concepts for coding in concept.get("coding") or ()]
        codings += [{"code": part["valueCode"]} for part in statements if part.get("valueCode").__class__ is str]
        texts = [concept.get("text") for concept in concepts] + [part.get("valueString") for part in statements]
        text = next((text for text in texts if text.__class__ is str and text), None)
        number = sets.add_concept({"coding": codings, "text": text})
        return sets.nothing() if number is None else number

    return convert


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


def lacks_contained_medication(sets: CodeSets) -> Callable[[dict[str, Any]], bool | None]:
    """Converter MedicationRequest → True where its medication is a contained one that is not there, or says nothing."""
    code = medication_code(sets)

    def convert(request: dict[str, Any]) -> bool | None:
        reference = (request.get("medicationReference") or {}).get("reference")
        is_contained = isinstance(reference, str) and reference.startswith("#")
        return True if is_contained and code(request) is None else None

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
    """What a look-up asks for. Its shape is checked here, where its own line is at fault."""
    if any(coding.get(name) is not None and coding[name].__class__ is not str for name in ("system", "code")):
        raise ValueError("expected system and code to be strings")
    return {name: coding[name] for name in ("system", "code", "userSelected") if name in coding}
