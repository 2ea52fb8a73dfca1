"""`snapshot.json`: what a snapshot says of itself. Written last into it, and read by whoever checks or continues it.

Counts, names of tables and columns, releases, times and export ids: nothing of a resource or a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import psycopg

from omop_schema.exports import ExportKind, ExportState, sql_values
from omop_schema.versions import IG_VERSION
from pipeline.core.errors import LakehouseError, WarehouseError
from pipeline.core.settings import Settings
from pipeline.lakehouse.layout import YEAR, LakeTable, type_name
from pipeline.lakehouse.parquet import LakeFile

__all__ = ["SNAPSHOT_FILE", "TableFiles", "content_of", "read_snapshot", "run_metadata", "table_entry"]

SNAPSHOT_FILE = "snapshot.json"

#: Raised when a reader of an older format would misread a newer one.
_FORMAT = 1


@dataclass(frozen=True)
class TableFiles:
    """One table as a snapshot.json has it: column → name of its type, and its files."""

    path: str
    columns: Mapping[str, str]
    files: tuple[LakeFile, ...]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def run_metadata(connection: psycopg.Connection, settings: Settings) -> dict[str, Any]:
    """Of what state the warehouse is: vocabulary, sites with their last export, publications.

    `connection` has the etl schema on its search_path, and sees the state that the tables are read in. Raises
    WarehouseError where nothing was ever published.
    """
    last = _records(
        connection,
        "SELECT export_id, published_at, vocabulary_release, vocabulary_hash, fingerprint, software_version,"
        " cdm_version, ig_version"
        " FROM publication ORDER BY published_at DESC, export_id DESC LIMIT 1",
    )
    if not last:
        raise WarehouseError(
            "Nothing has been published into the warehouse yet: there is nothing to write.",
            "Load something first: `epic-omop run --site NAME`, or `epic-omop ingest`.",
        )
    releases = _records(
        connection,
        "SELECT release, loaded_at, concept_count, content_hash FROM vocabulary_release WHERE is_current",
    )
    # Replays and hydrations follow from an export, and have no time of their own at the site.
    sites = _records(
        connection,
        "SELECT DISTINCT ON (job.site) job.site, job.export_id, job.kind, job.transaction_time, job.published_at,"
        " publication.vocabulary_release, publication.vocabulary_hash, publication.fingerprint, publication.software_version"
        " FROM export_job AS job LEFT JOIN publication USING (export_id)"
        f" WHERE job.state = '{ExportState.PUBLISHED}'"
        f" AND job.kind NOT IN {sql_values((ExportKind.REPLAY, ExportKind.HYDRATION))}"
        " ORDER BY job.site, job.published_at DESC, job.export_id DESC",
    )
    return {
        "cdm_version": settings.cdm_version.label,
        "ig_version": IG_VERSION,
        "software": f"epic-omop {version('epic-omop')}",
        "time_zone": settings.time_zone,
        "vocabulary": releases[0] if releases else None,
        "last_publication": last[0],
        "sites": sites,
    }


def content_of(snapshot: str, created_at: datetime, metadata: Mapping[str, Any], tables: Mapping[str, Any]) -> bytes:
    """The file. `tables`: path → entry, made by `table_entry`."""
    content = {"format": _FORMAT, "snapshot": snapshot, "created_at": created_at, **metadata, "tables": tables}
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z)


def table_entry(table: LakeTable, files: list[LakeFile]) -> dict[str, Any]:
    """How a table is described: enough to read it without opening a file, and to check every byte of it."""
    return {
        "rows": sum(file.rows for file in files),
        "bytes": sum(file.bytes for file in files),
        "partitioned_by": YEAR if table.date else None,
        "partition_date": table.date,
        "sorted_by": table.order,
        "columns": [{"name": name, "type": type_name(kind)} for name, kind in table.columns.items()],
        "files": files,
    }


def read_snapshot(folder: Path) -> dict[str, TableFiles]:
    """The tables of a snapshot, by path. Raises LakehouseError for a file that is gone, damaged, or of a later format."""
    file = folder / SNAPSHOT_FILE
    try:
        content = orjson.loads(file.read_bytes())
        if content["format"] > _FORMAT:
            raise LakehouseError(f"{file} is of a later format than this epic-omop knows.", "Use a newer epic-omop.")
        return {path: _table(path, entry) for path, entry in content["tables"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LakehouseError(
            f"{file} is missing or damaged ({type(error).__name__}).", "Publish again; this snapshot cannot be used."
        ) from None


def _table(path: str, entry: Mapping[str, Any]) -> TableFiles:
    columns = {column["name"]: column["type"] for column in entry["columns"]}
    files = (LakeFile(file["path"], file["rows"], file["bytes"], file["sha256"]) for file in entry["files"])
    return TableFiles(path, columns, tuple(files))


def _records(connection: psycopg.Connection, query: str) -> list[dict[str, Any]]:
    cursor = connection.execute(query)
    assert cursor.description is not None
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
