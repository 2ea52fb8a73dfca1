"""Lines that hold a code set are found, however their JSON is written, and others are not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fhir.ndjson import Chunk, Lines, lines_of
from pipeline.fhir.white_space import without_white_space
from pipeline.load.code_search import CodeSearch
from pipeline.transform.concepts.answers import text_as_asked

LOINC = "http://loinc.org"


def cut(raws: Iterable[bytes]) -> Lines:
    content = b"\n".join(raws) + b"\n"
    return lines_of(content, Chunk(0, len(content), 1))


def asked(*codings: tuple[str | None, str]) -> str:
    return orjson.dumps([list(coding) for coding in codings]).decode()


def found(search: CodeSearch, raws: Iterable[bytes]) -> list[int]:
    lines = cut(raws)
    places = search.candidates(lines)
    return [place for place, raw in zip(places.tolist(), lines.raws_at(places), strict=True) if search.matches(raw)]


codes = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda code: without_white_space({"code": code}) == {"code": code}
)


@st.composite
def spelt(draw: st.DrawFn, code: str) -> str:
    """A JSON string with some of its characters escaped."""
    parts = []
    for character in code:
        units = character.encode("utf-16-be")
        escaped = "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
        ways = [json.dumps(character, ensure_ascii=False)[1:-1], escaped, escaped.upper().replace("\\U", "\\u")]
        parts.append(draw(st.sampled_from([*ways, "\\/"] if character == "/" else ways)))
    return f'"{"".join(parts)}"'


@given(data=st.data(), code=codes, others=st.lists(codes, max_size=3), is_many=st.booleans())
def test_a_code_is_found_however_it_is_written(
    data: st.DataObject, code: str, others: list[str], is_many: bool
) -> None:
    sought = [asked((LOINC, code)), *(asked((LOINC, f"other {number}")) for number in range(60 if is_many else 0))]
    lines = [
        f'{{"resourceType":"Observation","code":{{"coding":[{{"code":{data.draw(spelt(one))},"system":"{system}"}}]}}}}'
        for one, system in [*((other, LOINC) for other in others), (code, LOINC), (code, "urn:other")]
    ]
    expected = [place for place, one in enumerate([*others, code]) if one == code]
    assert found(CodeSearch(sought, str), [line.encode() for line in lines]) == expected


@pytest.mark.parametrize(
    ("sought", "line", "is_held"),
    [
        (asked((LOINC, "1-8")), {"coding": [{"system": LOINC, "code": "1-8"}]}, True),
        (asked((LOINC, "1-8")), {"coding": [{"system": "urn:x", "code": "1-8"}]}, False),
        (asked((LOINC, "1-8")), {"coding": [{"code": "1-8"}]}, False),
        (asked((LOINC, "1-8")), {"coding": [{"system": LOINC, "code": " 1-8\t"}]}, True),
        (asked((LOINC, "1-8")), {"coding": [{"system": LOINC, "code": "\u00a01-8 "}]}, True),
        (asked((LOINC, "1-8")), {"coding": [{"system": LOINC, "code": "\u20031-8\ufeff"}]}, True),
        (asked((LOINC, "1-8")), {"text": "1-8"}, False),
        (asked((LOINC, "1-8")), {"id": "1-8", "reference": "1-8"}, False),
        (asked((LOINC, "1-8")), {"linkId": "/77-3/1-8"}, True),
        (asked((LOINC, "1-8")), {"linkId": "/1-8/77-3"}, False),
        (asked((LOINC, "1-7")), {"linkId": "/77-3/1-7"}, False),
        (asked(("urn:q", "/a")), {"questionnaire": "urn:q|2", "item": [{"linkId": "/a"}]}, True),
        (asked(("urn:q", "/a")), {"questionnaire": "urn:r", "item": [{"linkId": "/a"}]}, False),
        (asked((None, "/a")), {"item": [{"linkId": "/a"}]}, True),
        (asked((None, "mg")), {"unit": "mg", "value": 1}, True),
        (asked((None, "mg")), {"unit": "mg/dL", "system": LOINC, "code": "mg"}, False),
        (asked((LOINC, "1-8"), ("urn:x", "a")), {"coding": [{"system": LOINC, "code": "1-8"}]}, False),
        (asked((LOINC, "1-8"), ("urn:x", "a")),
         {"coding": [{"system": LOINC, "code": "1-8"}, {"system": "urn:x", "code": "a"}]}, True),
        (text_as_asked("Sugar disease"), {"code": {"text": " Sugar\n disease "}}, True),
        (text_as_asked("Sugar disease"), {"code": {"text": "Sugar disease, old"}}, False),
        (text_as_asked("ü"), {"code": {"text": "ü"}}, True),
        (text_as_asked("sugar disease"), {"code": {"text": "SUGAR disease", "note": "è"}}, True),
        (text_as_asked("sugar disease"), {"code": {"text": "\uff33ugar \uff24isease"}}, True),
    ],
)  # fmt: skip
def test_a_code_counts_in_its_system(sought: str, line: dict[str, Any], is_held: bool) -> None:
    many = [sought, *(asked((LOINC, f"other {number}")) for number in range(60))]
    for search in (CodeSearch([sought], str, by_link=True), CodeSearch(many, str, by_link=True)):
        for raw in (orjson.dumps(line), json.dumps(line).encode()):
            assert found(search, [b"{}", raw]) == ([1] if is_held else [])


def test_a_code_in_a_link_counts_by_option() -> None:
    line = orjson.dumps({"linkId": "/77-3/1-8"})
    assert found(CodeSearch([asked((LOINC, "1-8"))], str), [line]) == []
