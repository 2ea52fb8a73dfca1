"""Staging: the Parquet parts that the transform stage leaves for an export, and how they are read back.

`staging/<site>/<export_id>/<kind>/<file>-<chunk>.parquet`, where kind is a CDM table or one of the pipeline's own frames.
Parts are read in the order of their names, so that ids do not depend on which worker was faster.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.errors import LandingError
from pipeline.omop.routing import staged_columns

__all__ = [
    "ISSUE",
    "MAPPING",
    "OUTCOME",
    "OUTCOME_SCHEMA",
    "REFERENCE",
    "REFERENCE_VALUE",
    "REJECTION",
    "REJECTION_SCHEMA",
    "UNCHANGED",
    "StagedExport",
    "clear_site",
    "staging_for",
    "write_frame",
]

OUTCOME, REJECTION, REFERENCE, REFERENCE_VALUE = "outcome", "rejection", "reference", "reference_value"
ISSUE, MAPPING, UNCHANGED = "issue", "mapping", "unchanged"

_LINE_SCHEMA = {
    "file_number": pl.Int32,
    "line": pl.Int64,
    "byte_offset": pl.Int64,
    "byte_length": pl.Int64,
    "raw_hash_high": pl.Int64,
    "raw_hash_low": pl.Int64,
    "resource_type": pl.String,
    "resource_id": pl.String,
    "surrogate_id": pl.Int64,
}
#: One row a line that is not unchanged: `outcome` is loaded, excluded (with `reason`) or rejected.
OUTCOME_SCHEMA = {**_LINE_SCHEMA, "outcome": pl.String, "reason": pl.String}
#: One row a rejected line. `caused_by_surrogate_id`: the resource that it waits for, such as an encounter that dates it.
REJECTION_SCHEMA = {
    **_LINE_SCHEMA,
    "stage": pl.String,
    "code": pl.String,
    "path": pl.String,
    "reason": pl.String,
    "caused_by_surrogate_id": pl.Int64,
}

SCHEMAS: dict[str, dict[str, type[pl.DataType]]] = {
    OUTCOME: OUTCOME_SCHEMA,
    REJECTION: REJECTION_SCHEMA,
    REFERENCE: {"from_surrogate_id": pl.Int64, "role": pl.String, "to_surrogate_id": pl.Int64, "state": pl.String},
    REFERENCE_VALUE: {
        "surrogate_id": pl.Int64,
        "name": pl.String,
        "owner_surrogate_id": pl.Int64,
        "value": pl.String,
        "file_number": pl.Int32,
        "line": pl.Int64,
    },
    ISSUE: {"surrogate_id": pl.Int64, "code": pl.String, "path": pl.String},
    MAPPING: {
        "resource_type": pl.String,
        "element": pl.String,
        "system": pl.String,
        "code": pl.String,
        "mapped": pl.Boolean,
        "count": pl.Int64,
    },
    UNCHANGED: {"surrogate_id": pl.Int64, "file_number": pl.Int32, "line": pl.Int64},
}


def write_frame(target: Path, frame: pl.DataFrame) -> None:
    """Write a frame under a temporary name, then rename it. Raises LandingError, also when the disk is full."""
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        frame.write_parquet(temporary, compression="lz4", statistics=False)
        temporary.replace(target)
    except (OSError, pl.exceptions.ComputeError) as error:  # polars tells a disk that fills up as ComputeError
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2]
        raise LandingError(
            f"Staging cannot be written ({reason}) under {target.parent}.",
            "Make space, then run again: the export is taken up where it stands.",
        ) from error


@dataclass(frozen=True)
class StagedExport:
    """The staging folder of one export."""

    folder: Path

    def write(self, kind: str, part: str, frame: pl.DataFrame) -> None:
        """Write one part; an empty frame writes nothing. Raises LandingError on a full disk."""
        if not frame.is_empty():
            write_frame(self.folder / kind / f"{part}.parquet", frame)

    def parts(self, kind: str) -> list[Path]:
        return sorted((self.folder / kind).glob("*.parquet"))

    def kinds(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir()) if self.folder.exists() else []

    def frames(self, kind: str) -> Iterator[pl.DataFrame]:
        for part in self.parts(kind):
            yield pl.read_parquet(part)

    def scan(self, kind: str) -> pl.LazyFrame:
        """All parts of a kind as one lazy frame, empty with the kind's schema where there are none."""
        parts = self.parts(kind)
        return pl.scan_parquet(parts) if parts else pl.LazyFrame(schema=SCHEMAS.get(kind) or staged_columns(kind))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def clear_site(root: Path, site: str) -> None:
    """Remove what interrupted runs of a site left in staging. The caller holds the site's lock: no other run lives."""
    shutil.rmtree(root / site, ignore_errors=True)


def staging_for(root: Path, site: str, export_id: int) -> StagedExport:
    return StagedExport(root / site / str(export_id))
