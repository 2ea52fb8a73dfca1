"""Code sets: equal content has one number, and one key in every run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.transform.concepts.code_sets import CodeSets

UCUM = "http://unitsofmeasure.org"

#: The machine may be busy; what a test does is what counts.
UNTIMED = settings(deadline=None)

SYSTEMS = st.sampled_from([None, "http://loinc.org", "urn:oid:1.2.3"])
CODES = st.sampled_from(["a", "b", "c"])
CODINGS = st.builds(
    lambda system, code, selected: {
        key: value
        for key, value in (("system", system), ("code", code), ("userSelected", selected))
        if value is not None
    },
    SYSTEMS,
    CODES,
    st.sampled_from([None, True]),
)
CONCEPTS = st.builds(
    lambda codings, text: {"coding": codings, **({"text": text} if text else {})},
    st.lists(CODINGS, max_size=3),
    st.sampled_from([None, "a", "text"]),
)


def content(concept):
    return [tuple(sorted(coding.items())) for coding in concept["coding"]], concept.get("text")


@UNTIMED
@given(st.lists(CONCEPTS, max_size=20))
def test_equal_content_is_equal_number(concepts):
    sets = CodeSets()
    numbers = [sets.add_concept(concept) for concept in concepts]
    for one, first in zip(numbers, concepts, strict=True):
        assert (one is None) == (not first["coding"] and "text" not in first)
        for other, second in zip(numbers, concepts, strict=True):
            assert (one == other) == (content(first) == content(second))
    known = {number for number in numbers if number is not None}
    assert known == set(range(len(sets)))


@UNTIMED
@given(st.lists(CONCEPTS, max_size=10), st.randoms())
def test_keys_do_not_depend_on_the_order_of_arrival(concepts, random):
    def keys(arrived):
        sets = CodeSets()
        return {str(concept): sets.stable_key(n) for concept in arrived if (n := sets.add_concept(concept)) is not None}

    shuffled = list(concepts)
    random.shuffle(shuffled)
    assert keys(concepts) == keys(shuffled)


def test_frames_begin_at_the_number_asked_for():
    sets = CodeSets()
    sets.add_concept({"text": "only a text"})
    sets.add_concept(
        {"coding": [{"system": "s", "code": "x", "display": "X"}, {"system": "s", "code": "y", "userSelected": True}]}
    )
    assert sets.codings(0).rows() == [(1, 0, "s", "x", "X", False), (1, 1, "s", "y", None, True)]
    assert sets.sets(1).select("code_set", "text").rows() == [(1, None)]
    assert sets.sets(2).is_empty()
    assert sets.codings(2).is_empty()


def test_codings_without_a_code_do_not_count():
    sets = CodeSets()
    assert sets.add_concept({}) is None
    assert sets.add_concept({"coding": []}) is None
    assert sets.add_concept({"coding": [{"system": "s"}]}) is None
    assert sets.add_concept({"coding": [{"system": "s"}], "text": "t"}) == 0


@pytest.mark.parametrize("coding", [{"display": "Phone call"}, {"system": "s", "display": "Phone call"}])
def test_a_coding_without_a_code_is_a_text(coding):
    """It is there, and unknown: without a number it would be neither counted nor told from what is absent."""
    sets = CodeSets()
    assert sets.add_coding(coding) == 0
    assert sets.codings(0).is_empty()
    assert sets.text_of(0) == "Phone call"
    assert sets.add_concept({"coding": [coding, {"system": "s", "code": "x"}]}) == 1
    assert sets.codings(1).select("system", "code").rows() == [("s", "x")]


def test_a_coding_for_a_concept_and_a_concept_for_a_coding_are_other_shapes():
    sets = CodeSets()
    for _ in range(2):
        with pytest.raises(ValueError, match="expected a CodeableConcept"):
            sets.add_concept({"system": "s", "code": "x"})
        with pytest.raises(ValueError, match="expected a Coding"):
            sets.add_coding({"coding": [{"system": "s", "code": "x"}]})


def test_a_coding_is_a_concept_of_one():
    sets = CodeSets()
    assert sets.add_coding({"system": "s", "code": "x"}) == sets.add_concept({"coding": [{"system": "s", "code": "x"}]})


@pytest.mark.parametrize(
    ("quantity", "codings"),
    [
        ({"value": 1, "unit": "mg", "system": UCUM, "code": "mg"}, [(UCUM, "mg")]),
        ({"value": 1, "unit": "mmHg", "system": UCUM, "code": "mm[Hg]"}, [(UCUM, "mm[Hg]"), (None, "mmHg")]),
        ({"value": 1, "unit": "tablets", "system": "sct", "code": "428673006"}, [("sct", "428673006"), (None, "tablets")]),
        ({"value": 1, "unit": "mg"}, [(None, "mg")]),
        ({"value": 1, "unit": "mg", "system": UCUM}, [(None, "mg")]),
        ({"value": 1, "code": "mg"}, [(None, "mg")]),
    ],
)  # fmt: skip
def test_the_unit_of_a_quantity(quantity, codings):
    sets = CodeSets()
    assert sets.add_quantity(quantity) == 0
    assert sets.codings(0).select("system", "code").rows() == codings
    assert sets.add_quantity({**quantity, "value": 2}) == 0


def test_a_quantity_without_a_unit_has_none():
    sets = CodeSets()
    assert sets.add_quantity({"value": 1}) is None
    assert len(sets) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"coding": {"system": "s", "code": "x"}},
        {"coding": ["x"]},
        {"coding": [{"system": "s", "code": 12}]},
        {"coding": [{"system": 1, "code": "x"}]},
        {"coding": [{"system": "s", "code": ["x"]}]},
        {"coding": [{"system": "s", "code": "x", "display": 3}]},
        {"coding": [{"system": "s", "code": "x"}, None]},
        {"text": 3},
        {"text": ["a"]},
        {"coding": [{"system": "s", "code": "x"}], "text": 3},
    ],
)
def test_a_shape_that_fhir_does_not_allow_is_told_and_leaves_nothing(wrong):
    sets = CodeSets()
    for _ in range(2):
        with pytest.raises((TypeError, AttributeError, ValueError)):
            sets.add_concept(wrong)
    assert len(sets) == 0
