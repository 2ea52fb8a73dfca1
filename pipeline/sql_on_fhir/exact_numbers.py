"""Decimals that a double cannot hold: FHIR's have any number of digits, and what was written is what is kept.

Up to 15 significant digits a double gives the text back, so that the usual line needs nothing of this. Lines with a
number that it does not give back are found by one search over all lines of a chunk, and are read a second time, slowly,
with each such number as an `ExactNumber`: a float to everything that calculates, and the text of the source to who asks
for it.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import orjson
import polars as pl

__all__ = ["EXACT_DIGITS", "ExactNumber", "exact_number", "lines_with_long_numbers", "loads", "text_of"]

#: Significant digits that a double always gives back.
EXACT_DIGITS = 15

#: PostgreSQL's NUMERIC takes 16,383 digits after the point; nobody measures a twentieth of them.
_MOST_CHARACTERS = 800

#: A number of 16 or more characters of digits and point as the value of a member (Quantity.value, valueDecimal …):
#: what has fewer has at most 15 significant digits, and a double gives it back.
_LONG_NUMBER = r'value(?:Decimal)?"\s*:\s*(-?[0-9.]{16}[0-9.eE+-]*)'


class ExactNumber(float):
    """A float that knows its text, and is written as it."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> ExactNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def lines_with_long_numbers(texts: pl.Series) -> set[int]:
    """Positions of the lines (texts) with a number whose double does not give its text back."""
    long = pl.DataFrame({"position": texts.str.contains(_LONG_NUMBER).arg_true()})
    if long.is_empty():
        return set()
    # Most long numbers are doubles that a program wrote: 82.59838370183087. They come back as they are.
    number = pl.col("number")
    numbers = long.select("position", texts.gather(long["position"]).str.extract_all(_LONG_NUMBER).alias("number"))
    numbers = numbers.explode("number").with_columns(number.str.extract(_LONG_NUMBER))
    given_back = number == number.cast(pl.Float64, strict=False).cast(pl.String)
    return set(numbers.filter(~given_back.fill_null(False))["position"])


def loads(raw: bytes) -> Any:
    """What `orjson.loads` gives, with numbers that a double does not hold as ExactNumber.

    For lines that orjson has accepted. One that is nested too deeply for Python's parser comes as orjson reads it.
    """
    try:
        return json.loads(raw, parse_float=_decimal, parse_int=_integer)
    except RecursionError:
        return orjson.loads(raw)


def text_of(value: object) -> str | None:
    """The text of a number that a double cannot hold, else None."""
    return value.text if value.__class__ is ExactNumber else None


def _decimal(text: str) -> float:
    return exact_number(text) or float(text)


def _integer(text: str) -> float:
    return exact_number(text) or int(text)


def exact_number(text: str) -> ExactNumber | None:
    """A decimal literal as ExactNumber; None for what a double holds, and for what no NUMERIC column would take.

    That stays the nearest double.
    """
    if len(text) <= EXACT_DIGITS or len(text) > _MOST_CHARACTERS:
        return None
    number = ExactNumber(text)
    if not float(number) or Decimal(text) == Decimal(float.__repr__(number)):  # 0: too small, as for NUMERIC
        return None
    return number
