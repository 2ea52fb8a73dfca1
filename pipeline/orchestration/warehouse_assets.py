"""The CDM tables as assets that all sites share, without partitions: those that resources fill, those that are derived from
them, and those that only others fill, because `epic-omop verify` asks for their concepts too.

They are not run by themselves: a site's `load` publishes into all of them in one transaction, and reports each table
that it changed, with its rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from omop_schema.cdm import fields, tables_of
from omop_schema.descriptions import column_description
from omop_schema.etl import LINEAGE_TABLES
from pipeline.core.settings import Settings

__all__ = ["OTHER_TABLES", "warehouse_assets"]

#: Table → who fills it, of tables whose rows have no resource of their own and that checks are about.
_DERIVED, _OF_OTHERS = "Each load computes it from the other tables.", "epic-omop does not fill it."
OTHER_TABLES = {
    **dict.fromkeys(("observation_period", "drug_era", "dose_era", "condition_era"), _DERIVED),
    **dict.fromkeys(("cdm_source", "metadata", "fact_relationship"), "Each load fills it."),
    **dict.fromkeys(("note_nlp", "cost", "episode", "episode_event", "cohort_definition"), _OF_OTHERS),
}


def warehouse_assets(settings: Settings, loads: Sequence[dg.AssetKey]) -> list[dg.AssetSpec]:
    """One asset for each table that checks are about, downstream of every site's load."""
    tables = [table for table in (*LINEAGE_TABLES, *OTHER_TABLES) if table in tables_of(settings.cdm_version)]
    return [_table(settings, table, loads) for table in tables]


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
        deps=() if OTHER_TABLES.get(table) == _OF_OTHERS else loads,
        description=f"Table `{table}` of the OMOP CDM {settings.cdm_version.label}, with the rows of all sites."
        f" {OTHER_TABLES.get(table, '')}".rstrip(),
        group_name="cdm",
        kinds={"postgres"},
        metadata={
            "dagster/table_name": f"{settings.cdm_schema}.{table}",
            "dagster/column_schema": dg.TableSchema(columns),
        },
    )
