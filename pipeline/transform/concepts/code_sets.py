"""Code sets: each distinct content of a CodeableConcept, Coding or unit gets one number within a worker.

Rows carry the number; concepts are then resolved once per distinct code set instead of once per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import polars as pl

from pipeline.fhir.identity import content_key

__all__ = ["TEXT_VOCABULARY", "CodeSets"]

_CODING_SCHEMA = {
    "code_set": pl.Int32,
    "position": pl.Int32,
    "system": pl.String,
    "code": pl.String,
    "display": pl.String,
    "user_selected": pl.Boolean,
}
_SET_SCHEMA = {"code_set": pl.Int32, "code_set_key": pl.Int64, "text": pl.String}

#: Stands for what has no number yet; None is a number, too.
_UNKNOWN = -1

#: Key of the code set without content.
_NOTHING = ("nothing",)

#: Elements of a Coding, of which a CodeableConcept has none.
_OF_A_CODING = frozenset(("system", "code", "display"))

_Coding = tuple[str | None, str | None, str | None, bool]

#: System of texts without a code in `etl.local_map`, and `source_vocabulary_id` in `source_to_concept_map`.
TEXT_VOCABULARY = "text"


class CodeSets:
    """Numbers code sets. `add_concept`, `add_coding` and `add_quantity` are converters of view columns.

    They give None for an element without code and text (the display of a coding without a code is a text), and raise
    TypeError, AttributeError or ValueError for a shape that FHIR does not allow. A coding that is repeated in
    an element counts once: the work after this grows with what differs, not with what a server repeats.
    """

    def __init__(self, canonical: Callable[[str], str] = str) -> None:
        """`canonical(system)` → the name by which maps know a code system: another spelling is the same coding."""
        self._canonical = canonical
        self._numbers: dict[Any, int | None] = {}
        self._codings: list[list[_Coding]] = []
        self._texts: list[str | None] = []
        #: number → `stable_key`: each purpose asks for it
        self._keys: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._codings)

    def add_concept(self, value: dict[str, Any]) -> int | None:
        codings = value.get("coding")
        if codings:
            if codings.__class__ is not list:
                raise ValueError("expected an array of Coding")
            if len(codings) == 1:
                coding = codings[0]
                key: Any = (
                    coding.get("system"),
                    coding.get("code"),
                    coding.get("display"),
                    coding.get("userSelected"),
                    value.get("text"),
                )
            elif len(codings) == 2:  # written out: nearly all others, and no call or tuple for each coding
                one, two = codings
                key = (
                    one.get("system"),
                    one.get("code"),
                    one.get("display"),
                    one.get("userSelected"),
                    two.get("system"),
                    two.get("code"),
                    two.get("display"),
                    two.get("userSelected"),
                    value.get("text"),
                )
            else:
                key = (
                    *[(c.get("system"), c.get("code"), c.get("display"), c.get("userSelected")) for c in codings],
                    value.get("text"),
                )
        else:
            key = value.get("text")
            if key is None and not _OF_A_CODING.isdisjoint(value):
                raise ValueError("expected a CodeableConcept, found a Coding")
        number = self._numbers.get(key, _UNKNOWN)
        if number is not _UNKNOWN:
            return number
        return self._new(key, [_checked(coding) for coding in codings or ()], value.get("text"))

    def add_coding(self, value: dict[str, Any]) -> int | None:
        if "coding" in value:
            raise ValueError("expected a Coding, found a CodeableConcept")
        return self.add_concept({"coding": [value]})

    def add_quantity(self, value: dict[str, Any]) -> int | None:
        """The unit of a Quantity: its code in its system, and its text, which has no system (`resolve_single("unit")`).

        A code without a system is a text as well.
        """
        system, code, unit = value.get("system"), value.get("code"), value.get("unit")
        key = ("unit", system, code, unit)
        number = self._numbers.get(key, _UNKNOWN)
        if number is not _UNKNOWN:
            return number
        named = [(system if code else None, code or unit)]
        if unit != code and code:
            named.append((None, unit))
        return self._new(key, [_checked({"system": of, "code": name}) for of, name in named], unit)

    def nothing(self) -> int:
        """The number of a code set that holds nothing: stands for an element that is there and says nothing readable."""
        number = self._numbers.get(_NOTHING)
        if number is None:
            number = self._numbers[_NOTHING] = len(self._codings)
            self._codings.append([])
            self._texts.append(None)
        return number

    def _new(self, key: Any, codings: list[_Coding], text: Any) -> int | None:
        if text is not None and not isinstance(text, str):
            raise ValueError("expected text to be a string")
        if not text:  # a coding without a code says no more than a text does
            text = next((display for _, code, display, _ in codings if display and not code), None)
        named = ((of and self._canonical(of), code, display, selected) for of, code, display, selected in codings)
        codings = _distinct(coding for coding in named if coding[1])
        number = len(self._codings) if codings or text else None
        if number is not None:
            self._codings.append(codings)
            self._texts.append(text)
        self._numbers[key] = number
        return number

    def codings(self, first: int) -> pl.DataFrame:
        """Columns code_set, position, system, code, display, user_selected of the sets numbered from `first`."""
        return self.codings_of(range(first, len(self._codings)))

    def texts_alone(self, first: int) -> pl.DataFrame:
        """The sets numbered from `first` that have a text and no coding, as `codings` gives them: the text is the code,
        with single spaces, in the vocabulary TEXT_VOCABULARY. Adds vocabulary_id."""
        rows = [
            (number, 0, None, " ".join(text.split()), None, False)
            for number in range(first, len(self._codings))
            if not self._codings[number] and (text := self._texts[number])
        ]
        found = pl.DataFrame(rows, schema=_CODING_SCHEMA, orient="row")
        return found.with_columns(pl.lit(TEXT_VOCABULARY).alias("vocabulary_id"))

    def codings_of(self, numbers: Iterable[int]) -> pl.DataFrame:
        """The same of these sets alone, in their order."""
        rows = [
            (number, position, *coding) for number in numbers for position, coding in enumerate(self._codings[number])
        ]
        return pl.DataFrame(rows, schema=_CODING_SCHEMA, orient="row")

    def content(self, number: int) -> list[_Coding]:
        """The codings of one set: (system, code, display, whether a user selected it)."""
        return self._codings[number]

    def first_coding(self, number: int) -> tuple[str | None, str | None]:
        """System and code of the first coding; (None, None) of a text."""
        codings = self._codings[number]
        return codings[0][:2] if codings else (None, None)

    def display_of(self, number: int, system: str | None, code: str | None) -> str | None:
        """The display of a coding of the set; None where it has none."""
        found = (display for of, name, display, _ in self._codings[number] if (of, name) == (system, code))
        return next(found, None)

    def text_of(self, number: int) -> str | None:
        return self._texts[number]

    def sets(self, first: int) -> pl.DataFrame:
        """Columns code_set, code_set_key (Int64, stable between runs) and text of the sets numbered from `first`."""
        rows = [(number, self.stable_key(number), self._texts[number]) for number in range(first, len(self._codings))]
        return pl.DataFrame(rows, schema=_SET_SCHEMA, orient="row")

    def stable_key(self, number: int) -> int:
        key = self._keys.get(number)
        if key is None:
            key = self._keys[number] = self._key_of(number)
        return key

    def _key_of(self, number: int) -> int:
        parts = [part for system, code, _, _ in self._codings[number] for part in (system, code)]
        return content_key(*parts) if parts else content_key("text", self._texts[number])


def _distinct(codings: Iterable[_Coding]) -> list[_Coding]:
    """Each system and code once, in the place of the first; it is selected where any of them is."""
    found: dict[tuple[str | None, str | None], _Coding] = {}
    for system, code, display, is_selected in codings:
        known = found.get((system, code))
        found[system, code] = (
            (system, code, known[2] or display, known[3] or is_selected)
            if known
            else (system, code, display, is_selected)
        )
    return list(found.values())


def _checked(coding: dict[str, Any]) -> _Coding:
    system, code, display = coding.get("system"), coding.get("code"), coding.get("display")
    for part in (system, code, display):
        if part is not None and not isinstance(part, str):
            raise ValueError("expected system, code and display to be strings")
    return system, code, display, coding.get("userSelected") is True
