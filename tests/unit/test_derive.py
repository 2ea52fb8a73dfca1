"""Converters of view columns and the small rules behind derive functions. Whole rows: see the golden cases."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.omop import converters
from pipeline.omop.derive import conditions, observations

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
    found = converters.daily_dose(request(dose, timing))
    assert found == (None if expected is None else pytest.approx(expected))


def test_daily_dose_of_a_bare_request():
    assert converters.daily_dose({}) is None
    assert converters.daily_dose({"dosageInstruction": []}) is None


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
def test_use_and_rank_of_a_diagnosis(diagnosis, expected):
    assert converters.diagnosis_use(diagnosis) == expected


NUMBERS = pl.Series(["12", "-1.5", "+3", ".5", "5.", "1e3", " 7 ", "<0.01", ">= 100", "<=2E-3"])
NOT_NUMBERS = pl.Series(["", "abc", "1-2", "12 mg", "1,5", "<", "<<1", "1 2", "NaN", "inf", "~5", "0x10", "１２"])


def test_which_texts_are_numbers():
    assert NUMBERS.str.contains(observations._NUMBER_TEXT).all()
    assert not NOT_NUMBERS.str.contains(observations._NUMBER_TEXT).any()


@settings(deadline=None)
@given(st.text(max_size=12))
def test_no_text_makes_a_number_that_is_none(text):
    found = (
        pl.Series([text]).str.extract_groups(observations._NUMBER_TEXT).struct.field("2").cast(pl.Float64, strict=False)
    )
    assert found.is_null().all() or found.is_not_nan().all()
