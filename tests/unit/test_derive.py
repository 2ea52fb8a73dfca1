"""Converters of view columns and the small functions behind rules. Whole rows: see the golden cases."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fhir.identity import SurrogateKeys
from pipeline.transform import converters, dosages
from pipeline.transform.concepts.code_sets import CodeSets
from pipeline.transform.rules import conditions, observations, questionnaires
from tests.transforming import transform

QUANTITY = {"value": 21, "unit": "tablet"}


def request(dose, timing, quantity=QUANTITY):
    dosage = {"doseAndRate": [{"doseQuantity": dose}], "timing": {"repeat": timing}}
    return {"dispenseRequest": {"quantity": quantity}, "dosageInstruction": [dosage]}


@pytest.mark.parametrize(
    ("dose", "timing", "expected"),
    [
        ({"value": 1, "unit": "tablet"}, {"frequency": 2, "period": 1, "periodUnit": "d"}, 2.0),
        ({"value": 2, "unit": "tablet"}, {"period": 1, "periodUnit": "d"}, 2.0),
        ({"value": 1, "unit": "tablet"}, {"frequency": 1, "period": 8, "periodUnit": "h"}, 3.0),
        ({"value": 7, "unit": "tablet"}, {"frequency": 1, "period": 1, "periodUnit": "wk"}, 1.0),
        ({"value": 5, "unit": "mg"}, {"frequency": 1, "period": 1, "periodUnit": "d"}, None),
        ({"value": 1, "unit": "tablet"}, {"frequency": 1, "period": 1, "periodUnit": "mo"}, None),
        ({"value": 1, "unit": "tablet"}, {"frequency": 1, "periodUnit": "d"}, None),
        ({"unit": "tablet"}, {"frequency": 1, "period": 1, "periodUnit": "d"}, None),
        ({"value": 1}, {"frequency": 1, "period": 1, "periodUnit": "d"}, None),
    ],
)
def test_daily_dose_is_never_invented(dose, timing, expected):
    found = dosages.DailyDoses(CodeSets()).in_quantity_unit(request(dose, timing))
    assert found == (None if expected is None else pytest.approx(expected))


def test_daily_dose_of_a_bare_request():
    assert dosages.DailyDoses(CodeSets()).in_quantity_unit({}) is None
    assert dosages.DailyDoses(CodeSets()).in_quantity_unit({"dosageInstruction": []}) is None


@pytest.mark.parametrize(
    ("birth", "age", "expected"),
    [
        ("1960-05-04", "45 a", "2005-05-04"),
        ("1960-02-29", "45 a", "2005-02-28"),
        ("1960-05", "45 a", "2005-05-01"),
        ("1960", "45 a", "2005-01-01"),
        ("1960-05-04", "10 d", "1960-05-14"),
        ("1960-05-04", "2 wk", "1960-05-18"),
        ("1960-05-04", "45 h", None),
        ("1960-05-04", "45", None),
        ("1960-05-04", "99999 a", None),
        ("nonsense", "45 a", None),
        (None, "45 a", None),
    ],
)
def test_an_age_and_a_birth_date_give_a_date(birth, age, expected):
    assert conditions._add_age(birth, age) == expected


@settings(deadline=None)
@given(st.dates(date(1900, 1, 1), date(2020, 12, 31)), st.integers(0, 110))
def test_years_of_age_fall_on_the_birthday_or_the_last_day_before(born, years):
    found = date.fromisoformat(conditions._add_age(born.isoformat(), f"{years} a") or "")
    assert found.year == born.year + years
    assert found.month == born.month
    assert found.day in {born.day, 28}


@pytest.mark.parametrize(("value", "expected"), [("<", "<"), (">=", ">="), ("=", None)])
def test_comparators(value, expected):
    assert converters.comparator(value) == expected


@pytest.mark.parametrize("value", ["~", "", "ad", "=<", 1, None])
def test_a_comparator_that_is_not_known_is_refused(value):
    with pytest.raises(ValueError, match="expected one of"):
        converters.comparator(value)


@given(st.integers())
def test_integers_have_32_bits(value):
    if -(2**31) <= value < 2**31:
        assert converters.integer32(value) == value
    else:
        with pytest.raises(ValueError, match="32 bits"):
            converters.integer32(value)


@pytest.mark.parametrize("value", [1.0, "1", True, None])
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(TypeError):
        converters.integer32(value)


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ({"valueRange": {"low": {"value": 1, "unit": "mg"}}}, "1 mg -"),
        ({"valueRatio": {"numerator": {"value": 1, "comparator": "<"}, "denominator": {"value": 2}}}, "<1/2"),
        ({"valueSampledData": {"data": "1 2"}}, "1 2"),
        ({"valueTime": "08:00:00"}, "08:00:00"),
        ({"valuePeriod": {"start": "2020"}}, "2020/"),
        ({"valueQuantity": {"value": 1}}, None),
        ({}, None),
    ],
)
def test_values_without_a_column_become_text(element, expected):
    assert converters.other_value(element) == expected


@pytest.mark.parametrize(
    ("diagnosis", "expected"),
    [
        ({"use": {"coding": [{"code": "AD"}]}, "rank": 1}, "AD"),
        ({"use": {"coding": [{"code": "billing"}, {"code": "DD"}]}}, "DD"),
        ({"use": {"coding": [{"code": "billing"}]}, "rank": 1}, "1"),
        ({"rank": 3}, "other"),
        ({"use": {"text": "discharge"}}, None),
        ({}, None),
    ],
)
def test_use_and_rank_of_a_diagnosis(diagnosis, expected, tmp_path):
    visit = {"resourceType": "Encounter", "id": "e", "status": "finished", "subject": {"reference": "Patient/p"}}
    visit |= {
        "period": {"start": "2024-03-10"},
        "diagnosis": [{"condition": {"reference": "Condition/c"}, **diagnosis}],
    }
    found = transform(tmp_path, [visit])
    assert found.facts["Encounter/e"].get("condition_status") == ([expected] if expected else None)


NUMBERS = pl.Series(["12", "-1.5", "+3", ".5", "5.", "1e3", " 7 ", "<0.01", ">= 100", "<=2E-3"])
NOT_NUMBERS = pl.Series(["", "abc", "1-2", "12 mg", "1,5", "<", "<<1", "1 2", "NaN", "inf", "~5", "0x10", "１２"])


def test_which_texts_are_numbers():
    assert NUMBERS.str.contains(observations.NUMBER_TEXT).all()
    assert not NOT_NUMBERS.str.contains(observations.NUMBER_TEXT).any()


@settings(deadline=None)
@given(st.text(max_size=12))
def test_no_text_makes_a_number_that_is_none(text):
    found = (
        pl.Series([text]).str.extract_groups(observations.NUMBER_TEXT).struct.field("2").cast(pl.Float64, strict=False)
    )
    assert found.is_null().all() or found.is_not_nan().all()


@pytest.mark.parametrize(
    ("link_id", "code"),
    [
        ("68517-2", "68517-2"),
        ("/68517-2", "68517-2"),
        ("/82667-7/82669-3", "82669-3"),
        ("718-7", "718-7"),
        ("http://loinc.org/44250-9", "44250-9"),
        ("68517-3", None),
        ("LTR4SC7", None),
        ("1-", None),
        ("12345678-9", None),
        ("68517-2 (a)", None),
        ("", None),
    ],
)
def test_the_loinc_code_at_the_end_of_a_link_id(link_id, code):
    assert questionnaires.loinc_code(link_id) == code


@settings(deadline=None)
@given(st.integers(1, 9_999_999))
def test_of_ten_check_digits_one_fits(number):
    assert sum(questionnaires.loinc_code(f"{number}-{digit}") is not None for digit in range(10)) == 1


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"linkId": "1"}, None),
        ({"definition": "http://loinc.org/1-8"}, '{"definition":[{"system":"http://loinc.org","code":"1-8"}]}'),
        ({"definition": "urn:x#y.z"}, '{"definition":[{"system":"urn:x","code":"y.z"}]}'),
        ({"definition": "plain"}, None),
        (
            {"extension": [{"url": "urn:itemCode", "valueCoding": {"system": "s", "code": "c", "display": "d"}}]},
            '{"extension":[{"system":"s","code":"c"}]}',
        ),
        (
            {"extension": [{"url": "urn:code", "valueCodeableConcept": {"coding": [{"code": "c"}], "text": "t"}}]},
            '{"extension":[{"code":"c"}]}',
        ),
        ({"extension": [{"url": "urn:other", "valueCoding": {"code": "c"}}]}, None),
    ],
)
def test_what_an_item_says_of_its_code(item, expected):
    assert converters.item_code(item) == expected


def test_the_codes_of_a_questionnaire():
    inner = {"linkId": "2", "code": [{"system": "s", "code": "b", "display": "not kept"}]}
    form = {"item": [{"linkId": "1", "code": [{"code": "a"}], "item": [inner]}, {"linkId": "3"}]}
    assert converters.questionnaire_codes(form) == '{"1":[{"code":"a"}],"2":[{"code":"b","system":"s"}]}'
    assert converters.questionnaire_codes({}) is None


def test_a_canonical_url_names_the_resource_at_its_end_or_itself():
    keys = SurrogateKeys("site")
    key = converters.canonical_key(keys)
    assert key("http://example.org/fhir/Questionnaire/phq|2.0") == keys.of("Questionnaire", "phq")
    assert key("Questionnaire/phq") == keys.of("Questionnaire", "phq")
    assert key("http://loinc.org/q/44249-1#x") == keys.of("Questionnaire", "http://loinc.org/q/44249-1")
    assert key("http://example.org/Library/x") == keys.of("Questionnaire", "http://example.org/Library/x")
