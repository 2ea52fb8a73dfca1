"""Rules about numbers as data: `plausibility/*.csv` (what a number may be) and `units/*.csv` (into which unit it is brought).

Rows of CSV files → typed rules, with a problem for everything that is wrong. How rules are applied to rows of tables is
`pipeline.transform.value_checks`; which files are read, and a site's laid over them, `sources`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from pipeline.transform.concepts.index import unit_key
from pipeline.transform.mapping.sources import MappingProblem, Row
from pipeline.transform.rules.questionnaires import loinc_code

__all__ = ["ACTIONS", "DOMAINS", "Conversion", "Limit", "unit_concept", "value_rules"]

_Rule = TypeVar("_Rule")

Action = Literal["keep", "null", "exclude"]
#: What becomes of a number that a rule does not allow, where the site's options apply it.
ACTIONS: tuple[Action, ...] = ("keep", "null", "exclude")
#: Domains whose table has numbers, and the table.
DOMAINS: Mapping[str, str] = {"Measurement": "measurement", "Observation": "observation"}

_LOINC = re.compile(r"LOINC:[0-9]{1,7}-[0-9]")
_CONCEPT = re.compile(r"[1-9][0-9]*|[A-Za-z][A-Za-z0-9 ]*:\S+")


@dataclass(frozen=True)
class Limit:
    """What numbers of a concept, or of a domain, may be in a unit. Exactly one of `concept` and `domain` is given."""

    #: A concept id, or `VOCABULARY:code` of which the standard concept is meant.
    concept: int | str | None
    domain: str | None
    #: UCUM code; None: in any unit, and without one
    unit: str | None
    low: float | None
    high: float | None
    #: None: the rule does not say
    negative_allowed: bool | None
    action: Action


@dataclass(frozen=True)
class Conversion:
    """Numbers of a concept in the unit `source` are `number * factor + offset` in the unit `target` (UCUM codes)."""

    concept: int | str
    source: str
    target: str
    factor: float
    offset: float


def unit_concept(unit: str) -> str:
    """A unit as the mappings name concepts by code."""
    return f"UCUM:{unit}"


def value_rules(
    limits: list[Row], conversions: list[Row], unit_aliases: Mapping[str, str], problems: list[MappingProblem]
) -> tuple[tuple[Limit, ...], tuple[Conversion, ...]]:
    """The rules of the files, units by their UCUM codes; what is wrong goes to `problems`, and is left out."""
    reader = _Reader(unit_aliases, problems)
    found = [reader.limit(row) for row in limits]
    converted = [(row, conversion) for row in conversions if (conversion := reader.conversion(row))]
    return tuple(one for one in found if one), tuple(_of_one_standard(converted, problems))


def _of_one_standard(found: list[tuple[Row, Conversion]], problems: list[MappingProblem]) -> list[Conversion]:
    """Without those that bring numbers of a concept into another unit than the first of it: that would be no standard."""
    standards: dict[int | str, str] = {}
    kept = []
    for row, conversion in found:
        standard = standards.setdefault(conversion.concept, conversion.target)
        if standard == conversion.target:
            kept.append(conversion)
        else:
            reason = (
                f"{conversion.concept} is brought into {standard} by another row, and into {conversion.target} here"
            )
            problems.append(row.problem(f"{reason}: a concept has one standard unit"))
    return kept


class _Refused(ValueError):
    """What is wrong with a row, for people."""


@dataclass(frozen=True)
class _Reader:
    unit_aliases: Mapping[str, str]
    problems: list[MappingProblem]

    def limit(self, row: Row) -> Limit | None:
        return self._read(row, self._limit)

    def conversion(self, row: Row) -> Conversion | None:
        return self._read(row, self._conversion)

    def _read(self, row: Row, read: Callable[[Mapping[str, str]], _Rule]) -> _Rule | None:
        try:
            return read(row.values)
        except _Refused as refused:
            self.problems.append(row.problem(str(refused)))
            return None

    def _limit(self, values: Mapping[str, str]) -> Limit:
        concept, domain = values.get("concept"), values.get("domain")
        if (concept is None) == (domain is None):
            raise _Refused("needs a concept or a domain, and not both")
        if domain is not None and domain not in DOMAINS:
            raise _Refused(f"domain must be {' or '.join(DOMAINS)}, not {domain!r}")
        low, high = _number(values, "low"), _number(values, "high")
        if low is not None and high is not None and low > high:
            raise _Refused(f"low {values['low']} is above high {values['high']}")
        allowed = _yes_or_no(values, "negative_allowed")
        if low is None and high is None and allowed is None:
            raise _Refused("says nothing: low, high or negative_allowed must be given")
        if allowed is False and low is not None and low < 0:
            raise _Refused(f"low {values['low']} is negative, although negative_allowed is no")
        if allowed is None and low is not None and low < 0:
            allowed = True
        return Limit(
            concept=_concept(concept) if concept else None,
            domain=domain,
            unit=self._unit(values["unit"]) if "unit" in values else None,
            low=low,
            high=high,
            negative_allowed=allowed,
            action=_action(values, is_needed=low is not None or high is not None or allowed is False),
        )

    def _conversion(self, values: Mapping[str, str]) -> Conversion:
        source, target = self._unit(values["from"]), self._unit(values["to"])
        if source == target:
            raise _Refused(f"from and to are the same unit, {target}")
        factor = _number(values, "factor")
        if factor is None or factor <= 0:
            raise _Refused("factor must be a number above 0")
        return Conversion(_concept(values["concept"]), source, target, factor, _number(values, "offset") or 0.0)

    def _unit(self, text: str) -> str:
        return self.unit_aliases.get(unit_key(text), text)


def _concept(text: str) -> int | str:
    if not _CONCEPT.fullmatch(text):
        raise _Refused(f"concept must be an id or VOCABULARY:code, not {text!r}")
    if _LOINC.fullmatch(text) and loinc_code(text.removeprefix("LOINC:")) is None:
        raise _Refused(f"concept {text} is no LOINC code: its check digit does not fit")
    return int(text) if text.isdecimal() else text


def _number(values: Mapping[str, str], column: str) -> float | None:
    text = values.get(column)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _Refused(f"{column} must be a number, not {text!r}")
    return number


def _yes_or_no(values: Mapping[str, str], column: str) -> bool | None:
    text = values.get(column)
    if text not in {None, "yes", "no"}:
        raise _Refused(f"{column} must be yes or no, not {text!r}")
    return None if text is None else text == "yes"


def _action(values: Mapping[str, str], *, is_needed: bool) -> Action:
    text = values.get("action", "" if is_needed else "keep")
    found = next((action for action in ACTIONS if action == text), None)
    if found is None:
        raise _Refused(f"action must be one of {', '.join(ACTIONS)}, not {text!r}")
    return found
