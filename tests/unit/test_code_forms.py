"""How sources write codes: every vocabulary's own cases, and what holds for all of them."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import MappingError
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.mapping.mappings import load_mappings

FORMS = load_mappings(MAPPINGS_FOLDER).code_forms
CASES = [
    pytest.param(vocabulary, code, expected, id=f"{vocabulary} {code}")
    for vocabulary, rules in FORMS.of_vocabulary.items()
    for code, expected in rules.cases.items()
]


@pytest.mark.parametrize(("vocabulary", "code", "expected"), CASES)
def test_a_code_is_looked_up_in_these_forms(vocabulary, code, expected):
    attempts = FORMS.attempts(vocabulary, code)
    assert attempts[0] == (code,)
    others = [list(attempt) if len(attempt) > 1 else attempt[0] for attempt in attempts[1:]]
    assert others == expected


def test_every_vocabulary_with_forms_has_cases():
    assert {vocabulary for vocabulary, rules in FORMS.of_vocabulary.items() if not rules.cases} == set()


@pytest.mark.parametrize("vocabulary", ["SNOMED", "RxNorm", "http://a.site/codes", "", *FORMS.of_vocabulary])
def test_blanks_around_a_code_do_not_count(vocabulary):
    assert FORMS.attempts(vocabulary, " 7 ")[1:] == FORMS.attempts(vocabulary, "7")


@given(st.sampled_from([*FORMS.of_vocabulary, "SNOMED"]), st.text(max_size=20))
def test_any_text_has_few_forms_and_each_once(vocabulary, code):
    attempts = FORMS.attempts(vocabulary, code)
    assert attempts[0] == (code,)
    assert len(attempts) == len(set(attempts)) <= 20


@given(st.from_regex(r"[0-9]{4}-[0-9]{4}-[0-9]{2}|[0-9]{5}-[0-9]{3}-[0-9]{2}|[0-9]{5}-[0-9]{4}-[0-9]", fullmatch=True))
def test_ten_digits_with_hyphens_become_eleven(code):
    [*_, (found,)] = FORMS.attempts("NDC", code)
    assert len(found) == 11
    assert [int(found[:5]), int(found[5:9]), int(found[9:])] == [int(part) for part in code.split("-")]
    assert (found,) in FORMS.attempts("NDC", code.replace("-", "")) or any(
        found in attempt for attempt in FORMS.attempts("NDC", code.replace("-", ""))
    )


@given(st.lists(st.sampled_from(["{a}", "{b b}", "mg", "/", ".", "dL", "10*3", "(", ")"]), max_size=9).map("".join))
def test_an_annotation_takes_other_places_and_changes_nothing_else(unit):
    import re

    def plain(text):
        return re.sub(r"\{[^{}]*\}", "", text)

    for (other,) in FORMS.attempts("UCUM", unit):
        assert plain(other) == plain(unit)


@pytest.mark.parametrize(
    ("vocabulary", "codes", "customary"),
    [
        ("CVX", ["3", "03", " 03"], "03"),
        ("ICD10CM", ["e119", "E11.9", "E119"], "E11.9"),
        ("CPT4", ["99213-25", "99213"], "99213"),
        ("NDC", ["0002-7510-01", "00002751001"], "00002751001"),
        ("NDC", ["0002751001"], "0002751001"),
        ("UCUM", ["mg{creat}/dL"], "mg{creat}/dL"),
        ("Revenue Code", ["450", "0450"], "0450"),
        ("SNOMED", [" 22298006"], "22298006"),
        ("http://a.site/codes", ["a "], "a"),
    ],
)
def test_codes_that_differ_in_their_form_alone_have_one_customary_form(vocabulary, codes, customary):
    assert {FORMS.customary(vocabulary, code) for code in codes} == {customary}


def test_forms_are_what_a_worker_can_be_given():
    assert pickle.loads(pickle.dumps(FORMS)) == FORMS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NDC:\n  forms:\n    - {pattern: '([0-9', code: a}\n", "not a regular expression"),
        ("NDC:\n  forms:\n    - {pattern: '([0-9])', code: '\\2'}\n", "does not fit"),
        ("NDC:\n  forms:\n    - {pattern: '([0-9])'}\n", "either code or one_of"),
        ("NDC:\n  uper: true\n", "uper"),
        ("NDC: 5\n", "NDC"),
    ],
)
def test_what_is_wrong_in_the_table_of_forms_is_reported_with_its_line(tmp_path, text, words):
    own = tmp_path / "north"
    own.mkdir()
    (own / "code_forms.yaml").write_text(text)
    with pytest.raises(MappingError) as error:
        load_mappings(MAPPINGS_FOLDER, "north", None, tmp_path)
    assert words in str(error.value)
    assert "code_forms.yaml:" in str(error.value)
