"""What a spreadsheet does to codes, undone: the known code that a spoilt one was.

A spreadsheet drops leading zeros, writes long numbers and `1E10` as it likes, and takes `3-4` for a day.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

__all__ = ["KnownCodes"]

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_PART = re.compile(r"[0-9]+|[A-Za-z]+")
#: Comparing spellings costs time for each known code: what is asked more often gets no answer of this kind.
_MOST_COMPARISONS = 2_000_000


@dataclass
class KnownCodes:
    """The codes of one system that the warehouse has met."""

    codes: frozenset[str]
    _comparisons: int = 0
    _by_zeros: dict[str, str] = field(default_factory=dict)
    _by_number: dict[Decimal, str] = field(default_factory=dict)
    _by_day: dict[tuple[int, ...], str] = field(default_factory=dict)

    @classmethod
    def of(cls, codes: Iterable[str]) -> KnownCodes:
        known = cls(frozenset(codes))
        for code in sorted(known.codes):
            known._by_zeros.setdefault(_without_zeros(code), code)
            number, day = _number(code), _day(code)
            if number is not None:
                known._by_number.setdefault(number, code)
            if day:
                known._by_day.setdefault(day, code)
        return known

    def nearest(self, code: str) -> tuple[str, str] | None:
        """The known code that this one probably was, and what happened to it; None: there is none like it."""
        found = self._by_zeros.get(_without_zeros(code))
        if found is not None:
            return found, "leading zeros are lost" if len(found) > len(code.strip()) else "it has fewer leading zeros"
        number = _number(code)
        found = self._by_number.get(number) if number is not None else None
        if found is not None:
            return found, "it was taken for a number"
        found = next((self._by_day[day] for day in _days(code) if day in self._by_day), None)
        if found is not None:
            return found, "it was taken for a date"
        if self._comparisons > _MOST_COMPARISONS:
            return None
        self._comparisons += len(self.codes)
        close = difflib.get_close_matches(code, self.codes, 1, 0.6)
        return (close[0], "it is the most alike") if close else None


def _without_zeros(code: str) -> str:
    return code.strip().casefold().lstrip("0")


def _number(code: str) -> Decimal | None:
    """Of what a spreadsheet may take for a number: digits, a point or comma, an exponent."""
    plain = code.strip().replace(",", ".")
    if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?", plain):
        return None
    try:
        return Decimal(plain).normalize()
    except InvalidOperation:
        return None


def _day(code: str) -> tuple[int, ...]:
    """The numbers of a code that may be taken for a day: `3-4`, `03/04`, `MAR4`, `2020-3`; empty of others."""
    parts = _PART.findall(code)
    numbers = [_month(part) if part.isalpha() else int(part) for part in parts]
    if not 2 <= len(numbers) <= 3 or any(number is None for number in numbers):
        return ()
    return tuple(sorted(number for number in numbers if number is not None))


def _days(code: str) -> list[tuple[int, ...]]:
    """What the code may have been that became this date: with its year, and without the year that was added."""
    day = _day(code)
    if not day:
        return []
    return [
        day,
        *({tuple(sorted((*day[:place], *day[place + 1 :]))) for place in range(len(day))} if len(day) == 3 else ()),
    ]


def _month(name: str) -> int | None:
    place = name.lower()[:3]
    return _MONTHS.index(place) + 1 if place in _MONTHS else None
