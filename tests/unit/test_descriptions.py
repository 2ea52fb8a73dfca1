"""Every column of a table that Dagster shows has a description, and every description a column."""

from __future__ import annotations

import pytest

from omop_schema.cdm import fields
from omop_schema.cdm_fields import lines_of
from omop_schema.descriptions import column_description
from omop_schema.etl import LINEAGE_TABLES
from omop_schema.versions import CdmVersion
from pipeline.orchestration.warehouse_assets import OTHER_TABLES

TABLES = (*LINEAGE_TABLES, *OTHER_TABLES)


@pytest.mark.parametrize("version", CdmVersion)
@pytest.mark.parametrize("table", TABLES)
def test_every_column_is_described(table: str, version: CdmVersion) -> None:
    for field in fields(table, version):
        assert column_description(field).endswith("."), f"{table}.{field.name}"


def test_every_description_has_its_column_once() -> None:
    described = [line["column"] for line in lines_of("cdm_descriptions.csv")]
    columns = {field.name for version in CdmVersion for table in TABLES for field in fields(table, version)}
    assert len(described) == len(set(described))
    assert set(described) <= columns
