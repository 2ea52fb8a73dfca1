"""The table of a concept's domain, and events in the shape of tables."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest

from omop_schema.cdm import polars_schema, required_columns
from pipeline.staging.schemas import KEY_COLUMNS, staged_columns
from pipeline.transform.routing import DOMAIN_TABLES, EVENT_COLUMNS, route, to_staged, to_table

EVENT = {
    "surrogate_id": 1,
    "row_key": 2,
    "file_number": 1,
    "line": 7,
    "person_id": 3,
    "concept_id": 4,
    "source_concept_id": 5,
    "source_value": "x" * 60,
    "type_concept_id": 32817,
    "start_date": date(2024, 3, 10),
    "note_text": "a text",
}


@pytest.mark.parametrize(
    ("domain", "table"),
    [*DOMAIN_TABLES.items(), ("Meas Value", "observation"), ("Visit", "observation"), (None, "home")],
)
def test_the_domain_decides_and_an_unmapped_row_stays_at_home(domain, table):
    frame = pl.DataFrame(
        {"domain": [domain], "home_table": ["home"]}, schema={"domain": pl.String, "home_table": pl.String}
    )
    assert frame.select(route("domain", "home_table").alias("table"))["table"].to_list() == [table]


@pytest.mark.parametrize("table", sorted(EVENT_COLUMNS))
def test_an_event_takes_the_shape_of_every_table_it_can_be_routed_to(table):
    row = to_table(pl.DataFrame([EVENT]), table)
    assert dict(row.schema) == staged_columns(table)
    values = row.to_dicts()[0]
    own_id = f"{table}_id"
    missing = [name for name in required_columns(table) if name != own_id and values[name] is None]
    assert missing == []
    assert "x" * 50 in values.values()


@pytest.mark.parametrize("table", sorted(EVENT_COLUMNS))
def test_every_column_that_is_filled_exists(table):
    assert set(EVENT_COLUMNS[table]) <= set(polars_schema(table))
    assert set(DOMAIN_TABLES.values()) | {"note"} == set(EVENT_COLUMNS), "no domain leads to note, only a view does"


def test_a_required_concept_is_0_and_another_null():
    event = pl.DataFrame([{**EVENT, "unit_concept_id": None}], schema_overrides={"unit_concept_id": pl.Int64})
    row = to_table(event.drop("concept_id"), "measurement").to_dicts()[0]
    assert (row["measurement_concept_id"], row["unit_concept_id"], row["value_as_concept_id"]) == (0, None, None)


def test_a_required_end_is_the_start_where_there_is_none():
    assert to_table(pl.DataFrame([EVENT]), "drug_exposure")["drug_exposure_end_date"].to_list() == [date(2024, 3, 10)]
    assert to_table(pl.DataFrame([EVENT]), "device_exposure")["device_exposure_end_date"].to_list() == [None]


def test_text_is_cut_by_characters_not_bytes():
    row = to_table(pl.DataFrame([{**EVENT, "source_value": "é😀" * 40}]), "observation").to_dicts()[0]
    assert row["observation_source_value"] == "é😀" * 25


def test_rows_with_the_tables_own_names():
    rows = pl.DataFrame([{**dict.fromkeys(KEY_COLUMNS, 1), "care_site_name": "Ward", "unknown_column": 1}])
    staged = to_staged(rows, "care_site")
    assert dict(staged.schema) == staged_columns("care_site")
    assert staged["care_site_name"].to_list() == ["Ward"]
    assert "care_site_id" not in staged.columns
