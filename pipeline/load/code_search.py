"""Which lines hold a code set: searched as bytes, then looked at as JSON.

A line that holds a code has it as a JSON string, `"E11.9"`. Most lines of most files do not, and are passed over without
being read. What is found is parsed: the code must stand in an object with its system. Nothing here knows a database, or
where lines lie.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from pipeline.fhir.ndjson import Lines, texts_of
from pipeline.fhir.white_space import lines_with_odd_edges, without_white_space
from pipeline.transform.concepts.answers import Coding, codings_of, text_of
from pipeline.transform.concepts.local_rows import SOURCE_CODE_LENGTH, cut_text, text_key
from pipeline.transform.converters import canonical
from pipeline.transform.rules.questionnaires import loinc_code

__all__ = ["CodeSearch"]

#: More patterns than these are searched for all at once: one by one is faster for few.
_FEW_PATTERNS = 3

#: Elements whose texts are never codes.
_NO_CODES = frozenset(("id", "reference", "resourceType", "div", "data", "url", "versionId", "lastUpdated"))
#: A question's own name.
_LINK_ID = "linkId"
_LOINC_SYSTEM = "http://loinc.org"


@dataclass
class _Codes:
    """The strings of a resource that may be codes."""

    #: (canonical system, code) of objects with both
    coded: set[tuple[str, str]] = field(default_factory=set)
    #: other strings
    free: set[str] = field(default_factory=set)
    #: names of questions
    links: set[str] = field(default_factory=set)

    def has(self, coding: Coding) -> bool:
        system, code, _ = coding
        return (system, code) in self.coded if system else code in self.free

    @property
    def codes(self) -> set[str]:
        return {code for _, code in self.coded} | self.free


class CodeSearch:
    """Searches for code sets (`answers.as_asked`, `answers.text_as_asked`). `system_name`: `SystemNames.canonical`.
    `by_link`: a LOINC code at the end of a linkId is one (option `questionnaire_codes`)."""

    def __init__(self, asked: Iterable[str], system_name: Callable[[str], str], *, by_link: bool = False) -> None:
        self._canonical, self._by_link = system_name, by_link
        #: by one code of each set, the longest: fewest lines have it
        self._sets: dict[str, list[list[Coding]]] = defaultdict(list)
        self._texts: set[str] = set()
        for one in asked:
            if (text := text_of(one)) is not None:
                self._texts |= _keys_of(text)
            elif codings := codings_of(one):
                self._sets[max((code for _, code, _ in codings), key=lambda code: (len(code), code))].append(codings)
        self._patterns = sorted(set(_spelt(self._sets)))
        #: within quotes, between plain spaces, at the end of a linkId; and next to white space that is spelt otherwise
        self._plain = [before + one + after for one in self._patterns for before in _BEFORE for after in _AFTER]
        self._beside_escapes = [
            pattern for one in self._patterns for escape in _ESCAPES for pattern in (escape + one, one + escape)
        ]
        self._escapes = _escapes("".join(self._sets))
        self._words = sorted({_longest_word(text) for text in self._texts})

    def __bool__(self) -> bool:
        return bool(self._sets or self._texts)

    # --- bytes ----------------------------------------------------------------------------------------------------------

    def candidates(self, lines: Lines) -> npt.NDArray[np.int64]:
        """Places of the lines that may hold one of the sets: all that do are among them."""
        if not len(lines) or not self:
            return np.array([], np.int64)
        is_few = len(self._patterns) + len(self._words) <= _FEW_PATTERNS and "" not in self._words
        if not (is_few and lines.content.isascii()):
            return self._among_all(lines)
        content = lines.content
        patterns = [*self._plain]
        if b"\\" in content:
            patterns += self._beside_escapes
        found = [place for pattern in patterns for place in _places(content, pattern)]
        if self._escapes is not None and b"\\" in lines.content:
            found += [match.start() for match in self._escapes.finditer(lines.content)]
        if self._words:
            lower = lines.content.lower()
            found += [place for word in self._words for place in _places(lower, word.encode())]
            found += [match.start() for match in _ANY_ESCAPE.finditer(lines.content)]
        if not found:
            return np.array([], np.int64)
        return np.unique(np.searchsorted(lines.ends, np.unique(np.array(found, np.int64)), side="left"))

    def _among_all(self, lines: Lines) -> npt.NDArray[np.int64]:
        if "" in self._words:  # a text without a letter that is the same in any case
            return np.arange(len(lines))
        texts = texts_of(lines.raws)
        found = pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True)
        if self._plain:
            found = texts.str.contains_any([pattern.decode() for pattern in self._plain])
        found = found.scatter(lines_with_odd_edges(texts), True)
        if self._escapes is not None:
            found |= texts.str.contains(self._escapes.pattern.decode())
        if self._words:
            found |= texts.str.contains_any(self._words, ascii_case_insensitive=True)
            found |= texts.str.contains(r"\\u|[^\x00-\x7f]")
        return np.flatnonzero(found.to_numpy())

    # --- JSON -----------------------------------------------------------------------------------------------------------

    def matches(self, raw: bytes | str) -> bool:
        """Whether a line, or the JSON of a fact, holds one of the sets, or a text."""
        return self._found(raw, lambda found, codings: all(map(found.has, codings)))

    def touches(self, raw: bytes | str) -> bool:
        """Whether it holds a coding of one of the sets: others may have come from elsewhere."""
        return self._found(raw, lambda found, codings: any(map(found.has, codings)), every=True)

    def _found(self, raw: bytes | str, fits: Callable[[_Codes, list[Coding]], bool], *, every: bool = False) -> bool:
        try:
            resource = without_white_space(orjson.loads(raw))
        except (ValueError, RecursionError):
            return True  # it was read once: what is there now is for the load to say
        found = _Codes()
        self._collect(resource, None, found)
        if found.links and isinstance(resource, dict):
            self._add_links(resource.get("questionnaire"), found)
        if self._texts and any(not self._texts.isdisjoint(_keys_of(text)) for text in found.free):
            return True
        keys = self._sets if every else found.codes
        return any(fits(found, codings) for key in keys for codings in self._sets.get(key, ()))

    def _add_links(self, questionnaire: Any, found: _Codes) -> None:
        """A question's name is a code of its questionnaire, and may end with one of LOINC."""
        found.free |= found.links
        if isinstance(questionnaire, str):
            named = {self._canonical(questionnaire), self._canonical(canonical(questionnaire))}
            found.coded |= {(system, link) for system in named for link in found.links}
        if self._by_link:
            found.coded |= {(_LOINC_SYSTEM, code) for link in found.links if (code := loinc_code(link))}

    def _collect(self, value: Any, name: str | None, found: _Codes) -> None:
        if value.__class__ is str:
            if name == _LINK_ID:
                found.links.add(value)
            elif name not in _NO_CODES:
                found.free.add(value)
        elif value.__class__ is list:
            for item in value:
                self._collect(item, name, found)
        elif value.__class__ is dict:
            system, code = value.get("system"), value.get("code")
            is_coded = isinstance(system, str) and isinstance(code, str) and bool(system)
            if isinstance(system, str) and isinstance(code, str) and system:
                found.coded.add((self._canonical(system), code))
            for key, item in value.items():
                if not (is_coded and key in ("system", "code")):
                    self._collect(item, key, found)


def _keys_of(text: str) -> set[str]:
    """The keys under which a local map may have a text."""
    return {text_key(text)} if len(text) < SOURCE_CODE_LENGTH else {text_key(text), text_key(cut_text(text))}


def _places(content: bytes, pattern: bytes) -> Iterator[int]:
    """One in each line."""
    place = content.find(pattern)
    while place >= 0:
        yield place
        end = content.find(b"\n", place)
        place = content.find(pattern, end) if end >= 0 else -1


_BEFORE, _AFTER = (b'"', b" ", b"/"), (b'"', b" ")
#: White space in JSON (`pipeline.fhir.white_space`).
_ESCAPES = (b"\\n", b"\\r", b"\\t", b"\\b", b"\\f")
#: Of \u escapes, without the first two characters.
_SPACE_ESCAPES = r"00(?:0[9a-dA-D]|1[c-fC-F]|20|85|[aA]0)|1680|20(?:0[0-9abAB]|2[89fF]|5[fF])|3000|[fF][eE][fF][fF]"


def _spelt(codes: Iterable[str]) -> Iterator[bytes]:
    """A code as JSON has it within quotes, also with the other spelling of a slash."""
    for code in codes:
        inner = orjson.dumps(code)[1:-1]
        yield from {inner, inner.replace(b"/", b"\\/")}


_ANY_ESCAPE = re.compile(rb"\\u")


def _escapes(characters: str) -> re.Pattern[bytes] | None:
    r"""Finds these characters written as \u escapes; a slash also as \/ where others are not."""
    units = {
        f"{int.from_bytes(pair, 'big'):04x}"
        for character in set(characters)
        for pair in [
            character.encode("utf-16-be")[at : at + 2] for at in range(0, len(character.encode("utf-16-be")), 2)
        ]
    }
    if not units:
        return None
    spelt = sorted(
        "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in unit) for unit in units
    )
    slash = "|\\\\/" if "/" in characters else ""
    return re.compile(f"\\\\u(?:{'|'.join(spelt)}|{_SPACE_ESCAPES}){slash}".encode())


def _longest_word(key: str) -> str:
    """The longest part of a text's key that is there in any spelling of it without other characters than ASCII's. The last
    word of a cut text may be cut: it is searched for within words."""
    return max(re.findall(r"[a-z0-9.-]+", key), key=len, default="")
