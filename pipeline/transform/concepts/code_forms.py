"""How sources write the codes of a vocabulary: the forms in which a code is looked up, one after the other.

The rules are data (`mappings/concept_maps/code_forms.yaml`, whose head explains them), with the cases that the tests walk.
Here is what they mean. Which coding of several counts is decided in `pipeline.transform.concepts.resolver`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

__all__ = ["NO_FORMS", "CodeForms", "VocabularyForms"]

#: Spellings of which a vocabulary may know only one; nearly always there is one spelling.
Attempt = tuple[str, ...]

_ANNOTATION = re.compile(r"\{[^{}]*\}")
#: A unit with more annotations than this is looked up without them alone: their places multiply.
_MOST_ANNOTATIONS = 2


def _is_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression ({error})") from error
    return text


_Pattern = Annotated[str, AfterValidator(_is_pattern)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Replacement(_Strict):
    pattern: _Pattern
    by: str


class Form(_Strict):
    """Of a code that is as a whole as `pattern` says."""

    pattern: _Pattern
    code: str | None = None
    one_of: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _gives_a_code(self) -> Form:
        if (self.code is None) == (not self.one_of):
            raise ValueError("needs either code or one_of")
        for template in self.templates:
            try:
                re.compile(self.pattern + "|").fullmatch("").expand(template)  # type: ignore[union-attr]
            except (re.error, IndexError) as error:
                raise ValueError(f"{template!r} does not fit the pattern ({error})") from error
        return self

    @property
    def templates(self) -> tuple[str, ...]:
        return (self.code,) if self.code is not None else self.one_of

    def of(self, code: str) -> Attempt | None:
        match = re.fullmatch(self.pattern, code)
        return tuple(match.expand(template) for template in self.templates) if match else None


class VocabularyForms(_Strict):
    """The forms of one vocabulary's codes: an entry of code_forms.yaml."""

    upper: bool = False
    codes: Mapping[str, str] = {}
    replace: tuple[Replacement, ...] = ()
    forms: tuple[Form, ...] = ()
    annotations: bool = False
    #: for the tests
    cases: Mapping[str, list[Any]] = {}

    def attempts(self, code: str) -> Iterator[Attempt]:
        if self.upper:
            code = code.upper()
            yield (code,)
        if code in self.codes:
            yield (self.codes[code],)
            return
        for replacement in self.replace:
            code = re.sub(replacement.pattern, replacement.by.replace("\\", r"\\"), code)
        yield (code,)
        yield from self._of_forms(code)
        if self.annotations:
            for unit in _other_annotations(code):
                yield (unit,)
                yield from self._of_forms(unit)

    def _of_forms(self, code: str) -> Iterator[Attempt]:
        return (found for form in self.forms if (found := form.of(code)) is not None)

    def customary(self, code: str) -> str:
        """Of the last form, and what that is made to, the longest: 3 and 03 are both the other's form. Annotations stay."""

        def single(text: str) -> list[str]:
            return [text, *(one[0] for one in rules.attempts(text) if len(one) == 1)]

        rules = self.model_copy(update={"annotations": False})
        return max(single(single(code)[-1]), key=lambda text: (len(text), text))


@dataclass(frozen=True)
class CodeForms:
    """The forms of all vocabularies that have some."""

    of_vocabulary: Mapping[str, VocabularyForms] = field(default_factory=dict)

    def attempts(self, vocabulary_id: str, code: str) -> Sequence[Attempt]:
        """Spellings of a code in the order in which they count: as it is, without blanks, and by the vocabulary's rules.

        Each spelling is there once. An attempt of several spellings counts where the vocabulary knows one of them; where
        it knows more, the code is ambiguous.
        """
        found: dict[Attempt, None] = {(code,): None}
        plain = code.strip()
        if plain:
            found[plain,] = None
            rules = self.of_vocabulary.get(vocabulary_id)
            if rules is not None:
                found |= dict.fromkeys(rules.attempts(plain))
        return list(found)

    def customary(self, vocabulary_id: str, code: str) -> str:
        """The one form in which a vocabulary's codes are compared with each other, where nobody asks the vocabulary."""
        plain = code.strip()
        rules = self.of_vocabulary.get(vocabulary_id)
        return rules.customary(plain) if rules is not None and plain else plain

    def spellings(self, codes: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """(vocabulary, code) → the same code in its unambiguous spellings, in their order."""
        return {
            (vocabulary, code): [(vocabulary, one[0]) for one in self.attempts(vocabulary, code) if len(one) == 1]
            for vocabulary, code in codes
        }

    def mapped(
        self, codes: Iterable[tuple[str, str]], known: Mapping[tuple[str, str], int]
    ) -> dict[tuple[str, str], int]:
        """Of codes that mappings name, the concept of the first spelling that `known` has; others are left out."""
        found = {}
        for code, spellings in self.spellings(codes).items():
            concept_id = next((known[spelling] for spelling in spellings if spelling in known), None)
            if concept_id:
                found[code] = concept_id
        return found


NO_FORMS = CodeForms()


def _other_annotations(unit: str) -> Iterator[str]:
    """The unit with each annotation in another place, then without any; nothing for what is only annotation."""
    annotations = _ANNOTATION.findall(unit)
    plain = _ANNOTATION.sub("", unit)
    if not annotations or not plain.strip("/.") or not _is_whole(plain):
        return
    if len(annotations) <= _MOST_ANNOTATIONS:
        places = [match.start() for match in re.finditer(r"(?<=[^/.(])(?=[/.)])|$", plain)]
        for combined in dict.fromkeys(_placed(plain, annotations, places)):
            if combined != unit:
                yield combined
    yield plain


def _placed(plain: str, annotations: Sequence[str], places: Sequence[int]) -> Iterator[str]:
    """Each annotation in each place behind a part of the unit; several keep their order."""
    if len(annotations) == 1:
        yield from (plain[:place] + annotations[0] + plain[place:] for place in places)
        return
    first, second = annotations
    for number, place in enumerate(places):
        for later in places[number:]:
            yield plain[:place] + first + plain[place:later] + second + plain[later:]


def _is_whole(plain: str) -> bool:
    """Whether a unit is left without the annotations: not `g/` of `g/{time}`, nor `lg()` of `lg({reduction})`."""
    return plain[-1] not in "/." and "//" not in plain and "()" not in plain and ".." not in plain and "[]" not in plain
