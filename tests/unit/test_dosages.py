"""Converters of dosages: doses in another unit than the quantity's, pieces, rates, pharmacies. Whole rows: golden cases."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.transform import dosages
from pipeline.transform.concepts.code_sets import CodeSets


def instruction(*doses: tuple[Any, str], **more: Any) -> dict[str, Any]:
    """A dosage instruction with these entries of doseAndRate (value, unit), once a day."""
    entries = [{"doseQuantity": {"value": value, "unit": unit}} for value, unit in doses]
    return {"doseAndRate": entries, "timing": {"repeat": {"frequency": 1, "period": 1, "periodUnit": "d"}}, **more}


def dispense(unit: str, *instructions: dict[str, Any]) -> dict[str, Any]:
    return {"quantity": {"value": 100, "unit": unit}, "dosageInstruction": [*instructions]}


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (dispense("mL", instruction((250, "mg"))), (250.0, "mg")),
        # one in the quantity's unit comes first, and one by weight is no amount
        (dispense("mL", instruction((250, "mg"), (5, "mL"))), None),
        (dispense("mL", instruction((15, "mg/kg"), (250, "mg"))), (250.0, "mg")),
        (dispense("mL", instruction((15, "mg/kg"))), None),
        (dispense("mL", instruction((250, "mg")), instruction((500, "mg"))), (750.0, "mg")),
        (dispense("mL", instruction((250, "mg")), instruction((1, "g"))), None),
        (dispense("mL", instruction((250, "mg"), sequence=1), instruction((500, "mg"), sequence=2)), None),
        (dispense("mL", instruction((250, "mg"), asNeededBoolean=True)), None),
        (dispense("mL", instruction((None, "mg"))), None),
        (dispense("mL"), None),
        ({"dosageInstruction": [instruction((250, "mg"))]}, None),
    ],
)
def test_a_daily_dose_in_another_unit_than_the_quantity(resource, expected):
    sets = CodeSets()
    daily = dosages.DailyDoses(sets)
    dose, unit = daily.in_other_unit(resource), daily.other_unit(resource)
    assert (None if dose is None else (dose, sets.text_of(unit))) == expected
    assert (dose is None) == (unit is None)


@pytest.mark.parametrize(
    ("repeat", "expected"),
    [
        ({"frequency": 2, "period": 1, "periodUnit": "d"}, 2.0),
        ({"frequency": 1, "period": 12, "periodUnit": "h"}, 2.0),
        ({"period": 1, "periodUnit": "d"}, 1.0),  # frequency: 1 is FHIR's default
        ({"period": 1, "periodUnit": "d", "timeOfDay": ["08:00:00", "20:00:00"]}, 2.0),
        ({"period": 1, "periodUnit": "d", "when": ["MORN", "NOON", "EVE"]}, 3.0),
        ({"frequency": 2, "period": 1, "periodUnit": "d", "timeOfDay": ["08:00:00", "20:00:00"]}, 2.0),
        ({"frequency": 2, "period": 1, "periodUnit": "d", "when": ["PC"]}, 2.0),
        ({"frequency": 1, "period": 1, "periodUnit": "d", "dayOfWeek": ["mon", "wed", "fri"]}, 3 / 7),
        ({"period": 1, "periodUnit": "wk", "dayOfWeek": ["mon", "wed", "fri"]}, 3 / 7),
        ({"frequency": 3, "period": 1, "periodUnit": "wk", "dayOfWeek": ["mon", "wed", "fri"]}, 3 / 7),
        ({"period": 1, "periodUnit": "wk", "dayOfWeek": ["mon"], "timeOfDay": ["08:00:00", "20:00:00"]}, 2 / 7),
        ({"frequency": 1, "frequencyMax": 1, "period": 1, "periodUnit": "d"}, 1.0),
        # what is not one number is none
        ({"frequency": 1, "frequencyMax": 2, "period": 1, "periodUnit": "d"}, None),
        ({"frequencyMax": 2, "period": 1, "periodUnit": "d"}, None),
        ({"frequency": 1, "period": 4, "periodMax": 6, "periodUnit": "h"}, None),
        ({"frequency": 1, "period": 1, "periodUnit": "d", "timeOfDay": ["08:00:00", "20:00:00"]}, None),
        ({"frequency": 1, "period": 1, "periodUnit": "wk", "dayOfWeek": ["mon", "wed", "fri"]}, None),
        ({"frequency": 1, "period": 2, "periodUnit": "wk", "dayOfWeek": ["mon"]}, None),
        ({"frequency": 1, "period": 12, "periodUnit": "h", "dayOfWeek": ["mon"]}, None),
        ({"frequency": 2}, None),
        ({"frequency": 0, "period": 1, "periodUnit": "d"}, None),
    ],
)
def test_how_often_a_day(repeat, expected):
    resource = dispense("tablet", instruction((1, "tablet"), timing={"repeat": repeat}))
    assert dosages.DailyDoses(CodeSets()).in_quantity_unit(resource) == expected


@pytest.mark.parametrize(
    ("quantity", "dose"),
    [
        ("tablet", "tab"),
        ("TABS", "tablet"),
        ("Tablet(s)", "TAB"),
        ("tablets", "tbl"),
        ("capsules", "cap"),
        ("patch(es)", "patch"),
        ("milliliters", "mL"),
        ("puffs", "puff"),
    ],
)
def test_one_unit_by_several_names(quantity, dose):
    resource = dispense(quantity, instruction((10, "mg"), (2, dose), (10, "mg")))
    assert dosages.DailyDoses(CodeSets()).in_quantity_unit(resource) == 2.0


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        ({"unit": "TAB"}, True),
        ({"unit": "Tablets"}, True),
        ({"unit": "capsule"}, True),
        ({"code": "{tbl}"}, True),
        *(({"unit": unit}, None) for unit in ("EA", "box", "mL", "mg", "")),
        ({}, None),
    ],
)
def test_what_is_counted_in_pieces(quantity, expected):
    assert dosages.counts_pieces(quantity) is expected


def ratio(numerator: dict[str, Any], denominator: dict[str, Any]) -> dict[str, Any]:
    return {"rateRatio": {"numerator": numerator, "denominator": denominator}}


def rate(value: Any, unit: str, **more: Any) -> dict[str, Any]:
    return {"rateQuantity": {"value": value, "unit": unit, **more}}


@pytest.mark.parametrize(
    ("dosage", "expected"),
    [
        (rate(50, "mL/h"), (50.0, "mL")),
        (rate(50, "mL/hr"), (50.0, "mL")),
        (rate(2, "mg/min", code="mg/min", system="http://unitsofmeasure.org"), (120.0, "mg")),
        (rate(24, "units/day"), (1.0, "units")),
        (rate(0, "mL/h"), (0.0, "mL")),
        (ratio({"value": 50, "unit": "mL"}, {"value": 30, "unit": "min"}), (100.0, "mL")),
        (ratio({"value": 1, "code": "L", "unit": "L"}, {"value": 8, "code": "h"}), (0.125, "L")),
        (rate(50, "mL/h", code="mL/min"), (3000.0, "mL")),  # the code counts, as everywhere in FHIR
        # a dose by time is a rate; one that is an amount is none, and where the rate has no amount the dose may
        ({"dose": {"value": 8, "unit": "mg/hr"}}, (8.0, "mg")),
        ({"dose": {"value": 8, "unit": "mg"}}, None),
        ({**rate(12, "mL/h"), "dose": {"value": 5, "unit": "mcg/kg/min"}}, (12.0, "mL")),
        # no amount and time, or not exact
        (rate(0.05, "mcg/kg/min"), None),
        (ratio({"value": 1, "unit": "mg/kg"}, {"value": 1, "unit": "h"}), None),
        (rate(50, "mL"), None),
        (rate(50, "mL/h", comparator="<"), None),
        (rate(-5, "mL/h"), None),
        (rate(None, "mL/h"), None),
        (ratio({"value": 50, "unit": "mL"}, {"unit": "h"}), None),
        (ratio({"value": 50, "unit": "mL"}, {"value": 0, "unit": "h"}), None),
        (ratio({"value": 50, "unit": "mL"}, {"value": 1, "unit": "bag"}), None),
        ({}, None),
    ],
)
def test_rates_as_an_amount_an_hour(dosage, expected):
    sets = CodeSets()
    rates = dosages.Rates(sets)
    amount, unit = rates.an_hour(dosage), rates.unit(dosage)
    assert (None if amount is None else (pytest.approx(amount), rates.unit_text(dosage))) == expected
    assert (amount is None) == (unit is None)


IDENTIFIER = {"system": "urn:pharmacies", "value": "77"}


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ({"dispenseRequest": {"performer": {"identifier": IDENTIFIER}}}, [("urn:pharmacies", "77")]),
        ({"dispenseRequest": {"performer": {"reference": "Organization/o1"}}}, [("Organization", "o1")]),
        # who is to give a requested drug is no pharmacy
        ({"resourceType": "MedicationRequest", "performer": {"identifier": IDENTIFIER}}, []),
        (
            {
                "resourceType": "MedicationDispense",
                "performer": [{"actor": {"reference": "Practitioner/d1"}}, {"actor": {"identifier": IDENTIFIER}}],
                "location": {"reference": "Location/l1"},
                "type": {"coding": [{"system": "urn:types", "code": "MAIL"}]},
            },
            [("urn:pharmacies", "77"), ("Location", "l1"), ("urn:types", "MAIL")],
        ),
        ({"resourceType": "MedicationDispense"}, []),
    ],
)
def test_what_a_site_may_list_a_pharmacy_by(resource, expected):
    sets = CodeSets()
    is_dispense = resource.get("resourceType") == "MedicationDispense"
    number = (dosages.dispensing_pharmacy if is_dispense else dosages.pharmacy)(sets)(resource)
    found = [] if number is None else sets.codings_of([number]).select("system", "code").rows()
    assert found == expected
