"""The CDM tables as assets that all sites share, without partitions.

They are not run by themselves: a site's `load` publishes into all of them in one transaction, and reports each table
that it changed, with its rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from omop_schema.cdm import fields
from omop_schema.descriptions import column_description
from omop_schema.etl import LINEAGE_TABLES
from pipeline.core.settings import Settings

__all__ = ["warehouse_assets"]


def warehouse_assets(settings: Settings, loads: Sequence[dg.AssetKey]) -> list[dg.AssetSpec]:
    """One asset for each table that FHIR resources fill, downstream of every site's load."""
    return [_table(settings, table, loads) for table in LINEAGE_TABLES]


def _table(settings: Settings, table: str, loads: Sequence[dg.AssetKey]) -> dg.AssetSpec:
    columns = [
        dg.TableColumn(
            field.name,
            field.datatype,
            column_description(field),
            dg.TableColumnConstraints(nullable=not field.required),
        )
        for field in fields(table, settings.cdm_version)
    ]
    return dg.AssetSpec(
        [settings.cdm_schema, table],
        deps=loads,
        description=f"Table `{table}` of the OMOP CDM {settings.cdm_version.label}, with the rows of all sites.",
        group_name="cdm",
        kinds={"postgres"},
        metadata={
            "dagster/table_name": f"{settings.cdm_schema}.{table}",
            "dagster/column_schema": dg.TableSchema(columns),
        },
    )
