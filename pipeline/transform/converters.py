"""Converters of view columns: each turns one FHIR value into what a column holds, while the view runs.

They give None where there is nothing to say, and raise AttributeError, TypeError or ValueError for a shape that FHIR
does not allow: the line is then a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable
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
            return value_text(name, element[name]) or None
    return None


def value_text(name: str, value: Any) -> str:
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
    """Converter CodeableConcept → its code of FHIR's list, whatever other codes stand before it; without one what its
    displays and its text say in the list's words ("Entered in error"); else its first code."""

    def convert(concept: dict[str, Any]) -> str | None:
        codings = concept.get("coding") or ()
        codes = [code for coding in codings if (code := coding.get("code")) is not None]
        if any(code.__class__ is not str for code in codes):
            raise ValueError("expected a string")
        found: str | None = next((code for code in codes if code in known), None)
        if found is not None:
            return found
        words = [*codes, *(coding.get("display") for coding in codings), concept.get("text")]
        named = ["-".join(word.casefold().split()) for word in words if word.__class__ is str and word.strip()]
        in_words: str | None = next((word for word in named if word in known), next(iter([*codes, *named]), None))
        return in_words

    return convert


#: What a place is, in words, by FHIR's codes; a unit has none, and is one like a ward.
_PHYSICAL_TYPES = {
    "site": "si",
    "building": "bu",
    "wing": "wi",
    "ward": "wa",
    "level": "lvl",
    "corridor": "co",
    "room": "ro",
    "bed": "bd",
    "vehicle": "ve",
    "house": "ho",
    "cabinet": "ca",
    "road": "rd",
    "area": "area",
    "virtual": "vi",
    "unit": "wa",
    "nursing unit": "wa",
    "department": "wa",
    "floor": "lvl",
    "hospital": "bu",
    "jurisdiction": "jdn",
}
_PHYSICAL_TYPE_SYSTEM = "location-physical-type"


def physical_type(concept: dict[str, Any]) -> str | None:
    """Converter Location.physicalType → its code of FHIR's list, however that is called, else by its displays and text."""
    codings = concept.get("coding") or ()
    for coding in codings:
        if coding.get("code") and _PHYSICAL_TYPE_SYSTEM in str(coding.get("system")).casefold():
            return str(coding["code"])
    words = [*(coding.get("display") for coding in codings), concept.get("text")]
    named = (" ".join(str(word).casefold().split()) for word in words if word)
    return next((_PHYSICAL_TYPES[word] for word in named if word in _PHYSICAL_TYPES), None)


#: "Patient not asked" of SNOMED's US edition, with which Epic says that nobody has asked for allergies.
_NOT_ASKED = "1631000175102"
_NOT_ON_FILE = frozenset(("not on file", "allergies not on file", "not asked", "patient not asked"))
_DATES_OF_ALLERGY = ("recordedDate", "lastOccurrence", "onsetDateTime", "onsetPeriod", "onsetAge", "encounter")


def is_not_on_file(allergy: dict[str, Any]) -> bool | None:
    """True for an AllergyIntolerance that only says that nothing is known, and has no date; else None."""
    code = allergy.get("code") or {}
    codings = code.get("coding") or ()
    texts = [code.get("text"), *(coding.get("display") for coding in codings)]
    says_it = any(coding.get("code") == _NOT_ASKED for coding in codings) or any(
        text.__class__ is str and _words(text) in _NOT_ON_FILE for text in texts
    )
    return True if says_it and not any(allergy.get(name) for name in _DATES_OF_ALLERGY) else None


def _words(text: str) -> str:
    """The words of a text in lower case: "Not-on  File." is "not on file"."""
    return " ".join(text.casefold().replace("-", " ").rstrip(". ").split())


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
