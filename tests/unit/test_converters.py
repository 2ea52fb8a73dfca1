"""Converters of view columns, value by value: what a row shows only in part. Found missing by mutation testing."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.transform import converters, dosages
from pipeline.transform.concepts.code_sets import CodeSets


def request_of(*lengths: tuple[Any, str] | None, sequences: tuple[int | None, ...] | None = None) -> dict[str, Any]:
    """A request whose dosage instructions have these lengths (value, unit), and these sequences."""
    found = []
    for number, length in enumerate(lengths):
        repeat = {"boundsDuration": {"value": length[0], "code": length[1]}} if length else {}
        sequence = {"sequence": sequences[number]} if sequences else {}
        found.append({**sequence, "timing": {"repeat": repeat}})
    return {"dosageInstruction": found}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, None),
        (request_of(None), None),
        (request_of((10, "d")), "10d"),
        (request_of((25, "h")), "2d"),
        (request_of((24, "h")), "1d"),
        (request_of((1441, "min")), "2d"),
        (request_of((2, "wk")), "14d"),
        (request_of((2, "mo")), "2mo"),
        (request_of((1, "a")), "12mo"),
        (request_of((0.5, "a")), "6mo"),
        (request_of((0.5, "mo")), None),
        (request_of((3, "fortnight")), None),
        (request_of((0, "d")), None),
        (request_of((-1, "d")), None),
        (request_of((3650, "d")), "3650d"),
        (request_of((3651, "d")), None),
        (request_of((3650 * 1440, "min")), "3650d"),
        (request_of((3650 * 1440 + 1, "min")), None),
        (request_of((120, "mo")), "120mo"),
        (request_of((121, "mo")), None),
        (request_of((3, "d"), (4, "d")), "4d"),
        (request_of((3, "d"), (4, "d"), sequences=(1, 2)), "7d"),
        (request_of((3, "d"), (4, "d"), sequences=(1, 1)), "4d"),
        (request_of((3, "d"), (4, "d"), sequences=(1, None)), "4d"),
        (request_of((3, "d"), None, sequences=(1, 2)), "3d"),
        (request_of((3, "d"), None, (4, "d"), sequences=(1, 2, 2)), "4d"),
        (request_of((3, "mo"), (4, "mo"), sequences=(1, 2)), "7mo"),
        (request_of((3, "d"), (4, "mo"), sequences=(1, 2)), None),
    ],
)
def test_how_long_dosage_instructions_are_followed(request_, expected):
    assert dosages.dosage_length(request_) == expected


def dose(value: float | None, sequence: int | None = None) -> dict[str, Any]:
    quantity = {"doseQuantity": {"value": value, "unit": "tablet"}}
    timing = {"repeat": {"frequency": 1, "period": 1, "periodUnit": "d"}}
    return {"doseAndRate": [quantity], "timing": timing, **({"sequence": sequence} if sequence else {})}


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ([dose(1), dose(2)], 3.0),
        ([dose(1, 1), dose(2, 1)], 3.0),
        ([dose(1, 1), dose(2, 2)], None),
        ([dose(1), dose(None)], None),
        ([{**dose(1), "asNeededBoolean": True}], None),
    ],
)
def test_doses_of_several_instructions(instructions, expected):
    request = {"dispenseRequest": {"quantity": {"value": 9, "unit": "tablet"}}, "dosageInstruction": instructions}
    assert dosages.DailyDoses(CodeSets()).in_quantity_unit(request) == expected


@pytest.mark.parametrize(
    ("dosage", "expected"),
    [
        ({"rateQuantity": {"value": 100, "unit": "mL/h"}}, "100 mL/h"),
        (
            {"rateRatio": {"numerator": {"value": 50, "unit": "mL"}, "denominator": {"value": 1, "unit": "h"}}},
            "50 mL/1 h",
        ),
        ({"rateQuantity": {}}, None),
        ({}, None),
    ],
)
def test_rates(dosage, expected):
    assert dosages.rate_text(dosage) == expected


@pytest.mark.parametrize("end", [1, ["2024-01-01"], True])
def test_an_end_of_another_type_is_refused(end):
    request = {"dosageInstruction": [{"timing": {"repeat": {"boundsPeriod": {"end": end}}}}]}
    for convert in (dosages.dosage_end, dosages.dosage_end_unusable):
        with pytest.raises(ValueError, match="to be a string"):
            convert(request)


OMB = "ombCategory"
NOT_SAID = {"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}
#: Stands for a code set that says nothing.
NOTHING = "nothing"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([{"url": OMB, "valueCoding": {"code": "2106-3"}}], None),
        ([{"url": OMB, "valueCoding": {"display": "White"}}], None),
        ([{"url": "detailed", "valueCoding": {"code": "2108-9"}}], None),
        ([NOT_SAID], None),
        ([NOT_SAID, {"url": "text", "valueString": "White"}], None),
        ([{"url": OMB, "valueCoding": {}}], NOTHING),
        ([{"url": "other", "valueCoding": {"code": "W"}}], ("W", None)),
        ([{"url": "other", "valueCode": "W"}], ("W", None)),
        ([{"url": "other", "valueCode": 7}], NOTHING),
        ([{"url": "other", "valueCodeableConcept": {"coding": [{"code": "W"}], "text": "White"}}], ("W", "White")),
        ([{"url": "other", "valueCodeableConcept": "W"}], NOTHING),
        ([{"url": "text", "valueString": "White"}], (None, "White")),
        (["no extension"], NOTHING),
        ([], NOTHING),
    ],
)
def test_races_that_are_not_as_us_core_has_them(parts, expected):
    sets = CodeSets()
    number = converters.other_category(sets)({"url": "race", "extension": parts})
    if expected is None:
        assert number is None
    elif expected == NOTHING:
        assert number == sets.nothing()
    else:
        codings = sets.codings_of([number]).to_dicts()
        assert (codings[0]["code"] if codings else None, sets.text_of(number)) == expected


CONTAINED = {"resourceType": "Medication", "id": "m1", "code": {"text": "aspirin"}}


@pytest.mark.parametrize(
    ("contained", "reference", "text"),
    [
        ([CONTAINED], "#m1", "aspirin"),
        ([{**CONTAINED, "id": "m2"}, CONTAINED], "#m1", "aspirin"),
        ([CONTAINED], "#m2", None),
        ([{"resourceType": "Medication", "id": "m1"}], "#m1", None),
        ([], "#m1", None),
    ],
)
def test_a_contained_medication(contained, reference, text):
    sets = CodeSets()
    request = {"medicationReference": {"reference": reference}, "contained": contained}
    number = converters.medication_code(sets)(request)
    assert (sets.text_of(number) if number is not None else None) == text
    assert converters.lacks_contained_medication(sets)(request) is (True if text is None else None)
    elsewhere = {"medicationReference": {"reference": "Medication/m1"}}
    assert converters.medication_code(sets)(elsewhere) is None
    assert converters.lacks_contained_medication(sets)(elsewhere) is None
