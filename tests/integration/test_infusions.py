"""What follows from an infusion that ends by another resource: the eras of its person. Rows: golden cases; any history of
nights: `test_links`."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.warehouse.vocabulary import compile_index, load_vocabulary
from tests.integration.support import Warehouse, patient, reference

_ERAS = "SELECT drug_era_start_date, drug_era_end_date FROM cdm.drug_era"


def _action(name: str, day: int, rate: int) -> dict[str, Any]:
    saline = {"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "9863"}
    return {
        "resourceType": "MedicationAdministration",
        "id": name,
        "status": "completed",
        "subject": reference("Patient", "p1"),
        "request": reference("MedicationRequest", "m1"),
        "medicationCodeableConcept": {"coding": [saline]},
        "effectiveDateTime": f"2025-01-{day:02}T15:00:00Z",
        "dosage": {"rateQuantity": {"value": rate, "unit": "mL/h"}},
    }


@pytest.mark.requirement("themis-drug-admin-rate-change-end")
def test_eras_follow_an_infusion_whose_end_comes_later_and_changes(warehouse: Warehouse) -> None:
    """The stop is no row: no changed resource of these nights has one of the person."""
    runtime = warehouse.runtime
    release = load_vocabulary(runtime.url, MAPPINGS_FOLDER / "demo_vocabulary", vocab_schema="vocab", etl_schema="etl")
    compile_index(runtime.url, vocab_schema="vocab", release=release, home=runtime.settings.home)
    start = date(2025, 1, 2)
    warehouse.load({"Patient": [patient("p1")], "MedicationAdministration": [_action("a1", 2, 10)]})
    assert warehouse.rows(_ERAS) == [(start, start)]
    for day in (9, 5):
        stop = _action("a2", day, 0)
        warehouse.load({"MedicationAdministration": [stop]})
        assert warehouse.rows(_ERAS) == [(start, date(2025, 1, day))]
    warehouse.load({"MedicationAdministration": [stop | {"status": "entered-in-error"}]})
    assert warehouse.rows(_ERAS) == [(start, start)]
    quantities = "SELECT quantity, dose_unit_source_value FROM cdm.drug_exposure"
    assert warehouse.rows(quantities) == [(None, None)]
