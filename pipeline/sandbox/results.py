"""Results of one synthetic visit: vital signs, laboratory panels with DiagnosticReport and Specimen, answers.

Values come in the forms that Epic sends: quantities with and without UCUM code, comparators, strings such as
"<0.01" and "neg", coded values, and results that say only why there is no value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING

from pipeline.sandbox.codes import Code, code_book
from pipeline.sandbox.shapes import EPIC, Chooser, Resource, concept_variants, instant, plain_concept, reference

if TYPE_CHECKING:
    from pipeline.sandbox.visit import Visit

__all__ = ["LAB_PANELS", "Panel", "lab_panel", "single_results", "vital_signs"]

_UCUM = "http://unitsofmeasure.org"
_CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
_INTERPRETATION = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
_LAB_STATUSES = Chooser({"final": 955, "corrected": 15, "amended": 10, "cancelled": 10, "entered-in-error": 10})


@dataclass(frozen=True)
class Panel:
    code: str
    chance: float
    """Share of visits in which it is ordered."""
    specimen: str
    results: tuple[str, ...]


# One code a word: a list literal would be a line a code.
_CHEMISTRY = (
    "2345-7 2160-0 3094-0 2951-2 2823-3 2075-0 2028-9 17861-6 1751-7 2885-2 1975-2 1742-6 1920-8 6768-6 98979-8"
)
_BLOOD_COUNT = "718-7 4544-3 6690-2 789-8 787-2 785-6 786-4 788-0 777-3 770-8 736-9 5905-5 713-8 706-2"
_BASIC = "2345-7 2160-0 3094-0 2951-2 2823-3 2075-0 2028-9 17861-6"
_LIPIDS = "2093-3 2085-9 2571-8 13457-7"
_URINE = "5811-5 5803-2 20454-5 25428-4 5799-2 5802-4 5778-6"
LAB_PANELS = (
    Panel("24323-8", 0.08, "119364003", tuple(_CHEMISTRY.split())),
    Panel("24321-2", 0.06, "119364003", tuple(_BASIC.split())),
    Panel("58410-2", 0.10, "119297000", tuple(_BLOOD_COUNT.split())),
    Panel("24331-1", 0.07, "119364003", tuple(_LIPIDS.split())),
    Panel("24356-8", 0.05, "122575003", tuple(_URINE.split())),
)


def _category(code: str, display: str, local: str = "") -> list[Resource]:
    categories: list[Resource] = [
        {"coding": [{"system": _CATEGORY, "code": code, "display": display}], "text": display}
    ]
    if local:
        coding = {"system": f"{EPIC}.10.798268.30", "code": local, "display": local}
        categories.append({"coding": [coding], "text": local})
    return categories


_LABORATORY = _category("laboratory", "Laboratory", "Lab")
_VITAL_SIGNS = _category("vital-signs", "Vital Signs")
_SOCIAL_HISTORY = _category("social-history", "Social History")
_SURVEY = _category("survey", "Survey")


@cache
def _concepts(code: str) -> list[Resource]:
    return concept_variants(code_book().get(code), "lab")


@cache
def _interpretation(letter: str) -> list[Resource]:
    display = {"H": "High", "L": "Low", "N": "Normal", "A": "Abnormal"}[letter]
    return [{"coding": [{"system": _INTERPRETATION, "code": letter, "display": display}], "text": display}]


@cache
def _reference_range(code: Code) -> list[Resource]:
    low, high = (
        {"value": bound, "unit": code.unit, "system": _UCUM, "code": code.unit} for bound in (code.low, code.high)
    )
    return [{"low": low, "high": high, "text": f"{code.low} - {code.high} {code.unit}".strip()}]


def vital_signs(visit: Visit) -> Iterator[tuple[str, Resource]]:
    """Blood pressure as one Observation with components, and single measurements."""
    rng = visit.rng
    if rng.random() < 0.55:
        yield "Observation", _blood_pressure(visit)
    for code, chance in _VITAL_CHANCES:
        if rng.random() < chance:
            book_code = code_book().get(code)
            observation = _observation(visit, code, _VITAL_SIGNS, visit.start + 300)
            observation["valueQuantity"] = _quantity(rng, book_code)
            yield "Observation", observation


_VITAL_CHANCES = (
    ("8867-4", 0.5),
    ("9279-1", 0.3),
    ("8310-5", 0.4),
    ("59408-5", 0.35),
    ("29463-7", 0.45),
    ("8302-2", 0.2),
    ("39156-5", 0.25),
)


def _blood_pressure(visit: Visit) -> Resource:
    observation = _observation(visit, "85354-9", _VITAL_SIGNS, visit.start + 240)
    observation["component"] = [
        {"code": _concepts(code)[2], "valueQuantity": _quantity(visit.rng, code_book().get(code))}
        for code in ("8480-6", "8462-4")
    ]
    if visit.rng.random() < 0.02:  # one half of the reading is missing
        observation["component"].pop()
    return observation


def single_results(visit: Visit) -> Iterator[tuple[str, Resource]]:
    """Single laboratory tests, coded results, smoking status, questionnaires, and locally coded flowsheet rows."""
    rng, book = visit.rng, code_book()
    if rng.random() < 0.30:
        code = rng.choice(_single_tests())
        yield "Observation", _laboratory_result(visit, code, visit.start + 1800)
    if rng.random() < 0.06:
        yield "Observation", _coded_result(visit, rng.choice(book.of("lab-coded")), _LABORATORY)
    if rng.random() < 0.12:
        yield "Observation", _coded_result(visit, book.of("social")[0], _SOCIAL_HISTORY)
    if rng.random() < 0.10:
        score = rng.choice(book.of("survey"))
        observation = _observation(visit, score.code, _SURVEY, visit.start + 600)
        observation["valueInteger"] = rng.randrange(int(score.high or 1) + 1)
        yield "Observation", observation
    if rng.random() < 0.12:
        yield "Observation", _flowsheet_row(visit)


@cache
def _single_tests() -> list[str]:
    in_panels = {code for panel in LAB_PANELS for code in panel.results}
    return [code.code for code in code_book().of("lab") if code.code not in in_panels]


def _flowsheet_row(visit: Visit) -> Resource:
    """An observation that only the site's own code system knows; sometimes without category or code."""
    rng = visit.rng
    local = rng.choice(code_book().of("local-observation"))
    observation = _observation(visit, "8867-4", _SURVEY, visit.start + 500)
    observation["code"] = plain_concept(local) if rng.random() < 0.85 else {"text": local.display}
    observation["valueString"] = rng.choice(["yes", "no", "not assessed", "3"])
    if rng.random() < 0.4:
        del observation["category"]
    return observation


def lab_panel(visit: Visit, panel: Panel) -> Iterator[tuple[str, Resource]]:
    """Specimen, results, and the DiagnosticReport that lists them."""
    collected = visit.start + 1500
    specimen = visit.new_id("Specimen")
    yield (
        "Specimen",
        {
            "resourceType": "Specimen",
            "id": specimen,
            "status": "available",
            "type": plain_concept(code_book().get(panel.specimen)),
            "subject": visit.person.subject,
            "collection": {"collectedDateTime": instant(collected)},
        },
    )
    results = [_laboratory_result(visit, code, collected) for code in panel.results]
    for result in results:
        result["specimen"] = reference("Specimen", specimen)
        yield "Observation", result
    report: Resource = {
        "resourceType": "DiagnosticReport",
        "id": visit.new_id("DiagnosticReport"),
        "status": "final" if visit.settled else "preliminary",
        "category": [{"text": "Lab"}],
        "code": plain_concept(code_book().get(panel.code)),
    }
    visit.belongs(report)
    report["effectiveDateTime"] = instant(collected)
    report["issued"] = instant(collected + 7200)
    report["result"] = [reference("Observation", result["id"]) for result in results]
    yield "DiagnosticReport", report


def _observation(visit: Visit, code: str, category: list[Resource], seconds: int) -> Resource:
    rng = visit.rng
    settled_status = _LAB_STATUSES.pick(rng)
    observation: Resource = {
        "resourceType": "Observation",
        "id": visit.new_id("Observation", long=rng.random() < 0.4),
        "status": settled_status if visit.settled else "preliminary",
        "category": category,
        "code": _concepts(code)[int(rng.random() * 3)],
    }
    visit.belongs(observation)
    if rng.random() < 0.98:
        observation["effectiveDateTime"] = instant(seconds)
    observation["issued"] = instant(seconds + 3600)
    return observation


def _laboratory_result(visit: Visit, code: str, seconds: int) -> Resource:
    observation = _observation(visit, code, _LABORATORY, seconds)
    test = code_book().get(code)
    if test.use == "lab-text":
        color = code == "5778-6"
        observation["valueString"] = visit.rng.choice(
            ["Yellow", "Straw", "Amber"] if color else ["neg", "neg", "1+", "trace"]
        )
        return observation
    _add_value(observation, visit.rng, test)
    return observation


def _add_value(observation: Resource, rng: Random, test: Code) -> None:
    chance = rng.random()
    low, high = test.low or 0.0, test.high or 1.0
    if chance < 0.01:
        reason = {"system": "http://terminology.hl7.org/CodeSystem/data-absent-reason", "code": "unknown"}
        observation["dataAbsentReason"] = {"coding": [reason], "text": "Specimen hemolyzed"}
        return
    if chance < 0.03:
        observation["valueString"] = rng.choice(["<0.01", "neg", ">1000", "see comment"])
        return
    quantity = _quantity(rng, test)
    if chance < 0.05:
        quantity["comparator"] = rng.choice(["<", "<=", ">", ">="])
    elif chance < 0.08:  # a unit as people write it, without its UCUM code
        quantity = {"value": quantity["value"], "unit": test.unit or "units"}
    observation["valueQuantity"] = quantity
    if chance < 0.85:
        observation["referenceRange"] = _reference_range(test)
        value = quantity["value"]
        letter = "H" if value > high else "L" if value < low else "N"
        if letter != "N" or chance < 0.3:
            observation["interpretation"] = _interpretation(letter)


def _quantity(rng: Random, code: Code) -> Resource:
    low, high = code.low or 0.0, code.high or 1.0
    value = abs(rng.gauss((low + high) / 2, (high - low) / 3.2))
    digits = 0 if high >= 100 else 1 if high >= 10 else 3 if high < 1.1 else 2
    quantity: Resource = {"value": round(value, digits) if digits else int(value)}
    if code.unit:
        quantity |= {"unit": code.unit, "system": _UCUM, "code": code.unit}
    return quantity


def _coded_result(visit: Visit, question: Code, category: list[Resource]) -> Resource:
    observation = _observation(visit, question.code, category, visit.start + 700)
    answer = code_book().get(visit.rng.choice(question.partner))
    text_only = visit.rng.random() < 0.1
    observation["valueCodeableConcept"] = {"text": answer.display} if text_only else plain_concept(answer)
    return observation
