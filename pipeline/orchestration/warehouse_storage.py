"""The class that `dagster.yaml` names for a storage in the warehouse's database; only Dagster imports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster import StringSource
from dagster._config.config_schema import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import load_settings
from pipeline.orchestration.storage_in_postgres import storage_url
from pipeline.warehouse.connection import database_url

__all__ = ["WarehouseStorage"]


class WarehouseStorage(DagsterPostgresStorage):
    """Runs, events and switches in a schema of the database that EPIC_OMOP_DATABASE_URL names.

    Every process of Dagster opens it, by the settings of its own environment. `make_schema` has made the tables.
    """

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        return {"schema": StringSource}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> WarehouseStorage:
        settings = load_settings()
        if settings.database_url is None:
            raise ConfigurationError(
                "Dagster's storage is in the warehouse's database, but EPIC_OMOP_DATABASE_URL is not set here.",
                "Start every process of Dagster with the same settings (docs/deployment.md).",
            )
        url = database_url(settings.database_url, settings.home)
        return cls(storage_url(url, config_value["schema"]), should_autocreate_tables=False, inst_data=inst_data)
