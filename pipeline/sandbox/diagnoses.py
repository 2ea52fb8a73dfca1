"""Conditions of one synthetic visit: how a diagnosis is coded, dated and verified."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.shapes import (
    DAY,
    EPIC,
    Chooser,
    Resource,
    condition_variants,
    hl7_status,
    instant,
    local_date,
    plain_concept,
    turn,
)
from pipeline.sandbox.visit import Visit

__all__ = ["diagnoses"]

_CONDITION_STATES = Chooser({"confirmed": 90, "provisional": 4, "refuted": 2, "unconfirmed": 2, "entered-in-error": 2})
_TEXT_DIAGNOSES = ("Feeling under the weather", "Follow-up after test", "Paperwork request")


@cache
def _diagnosis_concepts() -> tuple[list[Resource], list[float]]:
    """All ways in which a diagnosis is written, and running weights: the list begins with the frequent ones."""
    book = code_book()
    snomed = [code for code in book.of("condition") if code.system == "http://snomed.info/sct"]
    single = [code for code in book.of("condition") if not code.partner]
    local = book.of("local-condition")
    groups = [condition_variants(code) for code in snomed] + [[plain_concept(code)] for code in single + local]
    groups.append([{"text": text} for text in _TEXT_DIAGNOSES])
    concepts: list[Resource] = []
    weights: list[float] = []
    total = 0.0
    for rank, group in enumerate(groups):
        for concept in group:
            total += 1 / (rank + 3) / len(group)
            concepts.append(concept)
            weights.append(total)
    return concepts, weights


def diagnoses(visit: Visit) -> Iterator[Resource]:
    """Up to three Conditions of the visit."""
    rng = visit.rng
    count = rng.choices([0, 1, 2, 3], [48, 37, 11, 4])[0]
    for number in range(count):
        concepts, weights = _diagnosis_concepts()
        verification = _CONDITION_STATES.pick(rng)
        if visit.first_condition_in_error and number == 0:
            verification = "entered-in-error"
        condition: Resource = {
            "resourceType": "Condition",
            "id": visit.new_id("Condition"),
            "category": [_condition_category(rng)],
            "code": rng.choices(concepts, cum_weights=weights)[0],
        }
        visit.belongs(condition)
        condition |= _condition_dates(visit)
        condition["verificationStatus"] = _verification(condition["id"], verification)
        if verification != "entered-in-error":
            closed = "abatementDateTime" in condition
            condition["clinicalStatus"] = hl7_status("condition-clinical", "resolved" if closed else "active")
        if rng.random() < 0.05:
            del condition["category"]
        yield condition


def _condition_category(rng: Random) -> Resource:
    code = "encounter-diagnosis" if rng.random() < 0.65 else "problem-list-item"
    return {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-category", "code": code}]}


def _verification(condition_id: str, code: str) -> Resource:
    """Every fifth with the site's own coding first."""
    status = hl7_status("condition-ver-status", code)
    if turn(condition_id, 5):
        return status
    local = {"system": f"{EPIC}.10.696871.300", "code": "2", "display": code.title()}
    return {"coding": [local, *status["coding"]], "text": code.title()}


def _condition_dates(visit: Visit) -> Resource:
    rng, start = visit.rng, visit.start
    chance = rng.random()
    recorded = local_date(start)
    dates: Resource = {} if chance < 0.02 else {"recordedDate": recorded}
    if chance < 0.04:
        dates["onsetDateTime"] = recorded[:4]
    elif chance < 0.08:
        dates["onsetDateTime"] = recorded[:7]
    elif chance < 0.6:
        dates["onsetDateTime"] = local_date(max(start - rng.randrange(400) * DAY, visit.person.born))
    elif chance < 0.7:
        dates["onsetDateTime"] = instant(start)
        dates["abatementDateTime"] = instant(start + 14 * DAY)
    return dates
