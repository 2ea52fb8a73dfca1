"""`open.sql` of a snapshot: DuckDB views over its files. SQL text only; the project itself does not need DuckDB."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from omop_schema.versions import CdmVersion
from pipeline.lakehouse.layout import YEAR, LakeTable

__all__ = ["open_sql"]


def open_sql(lakehouse: Path, snapshot: str, version: CdmVersion, tables: Iterable[LakeTable]) -> str:
    """Statements for DuckDB: a schema a folder, a view a table. All views read this one snapshot for ever."""
    listed = list(tables)
    schemas = dict.fromkeys(table.folder for table in listed)
    place = _place(lakehouse, snapshot, "snapshot.json")
    return "\n".join(
        [
            f"-- OMOP CDM {version.label}, snapshot {snapshot}, as DuckDB views.   duckdb -init latest/open.sql",
            "-- The views read this snapshot, also when there is a newer one: run the newer open.sql to move on.",
            "-- Where the folder has been moved or mounted elsewhere, first: SET VARIABLE lakehouse = '/its/new/place';",
            *(f"CREATE SCHEMA IF NOT EXISTS {schema};" for schema in schemas),
            *(_view(lakehouse, snapshot, table) for table in listed),
            f"CREATE OR REPLACE VIEW meta.snapshot AS SELECT * FROM read_json({place}, maximum_object_size = 1000000000);",
            "",
        ]
    )


def _view(lakehouse: Path, snapshot: str, table: LakeTable) -> str:
    files = "*/*.parquet" if table.date else "*.parquet"
    partitions = (
        f"hive_partitioning = true, hive_types = {{'{YEAR}': INTEGER}}" if table.date else "hive_partitioning = false"
    )
    return (
        f"CREATE OR REPLACE VIEW {table.folder}.{table.name} AS SELECT * FROM read_parquet("
        f"{_place(lakehouse, snapshot, f'{table.path}/{files}')}, {partitions});"
    )


def _place(lakehouse: Path, snapshot: str, path: str) -> str:
    return (
        f"coalesce(getvariable('lakehouse'), {_quoted(str(lakehouse))}) || {_quoted(f'/snapshots/{snapshot}/{path}')}"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
