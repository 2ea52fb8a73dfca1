"""Whether a snapshot on the disk is what was written: every file, its bytes, rows and columns. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from pipeline.core.errors import LakehouseError, LandingError
from pipeline.lakehouse.layout import type_name
from pipeline.lakehouse.parquet import LakeFile
from pipeline.lakehouse.snapshot_file import SNAPSHOT_FILE, TableFiles, read_snapshot
from pipeline.lakehouse.store import lakehouse_folder
from pipeline.landing.files import file_digest

__all__ = ["check_snapshot", "snapshot_to_check"]


def snapshot_to_check(path: str) -> Path:
    """The latest snapshot of the lakehouse at a path, or the snapshot at it. Raises UsageError, LakehouseError."""
    lakehouse = lakehouse_folder(path)
    if (lakehouse.folder / SNAPSHOT_FILE).exists():
        return lakehouse.folder.resolve()
    latest = lakehouse.latest()
    if latest is None:
        raise LakehouseError(
            f"{lakehouse.folder} holds no snapshot.", "Write one with `epic-omop lakehouse snapshot --to PATH`."
        )
    return latest


def check_snapshot(folder: Path, progress: Callable[[int, int], None] = lambda *_: None) -> Iterator[str]:
    """What is wrong, a sentence each; nothing where all is well. `progress`: bytes read, bytes in all.

    Raises LakehouseError where snapshot.json itself cannot be read.
    """
    tables = read_snapshot(folder)
    total = sum(table.bytes for table in tables.values())
    done = 0
    for table in tables.values():
        for file in table.files:
            if problem := _problem(folder, table, file):
                yield f"{file.path}: {problem}"
            done += file.bytes
            progress(done, total)
    listed = {file.path for table in tables.values() for file in table.files}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")}
    yield from (f"{path}: does not belong to the snapshot" for path in sorted(found - listed))


def _problem(folder: Path, table: TableFiles, file: LakeFile) -> str | None:
    path = folder / file.path
    if not path.is_file():
        return "is missing"
    try:
        digest = file_digest(path)
    except LandingError:
        return "cannot be read"
    if digest.bytes != file.bytes:
        return f"has {digest.bytes:,} bytes instead of {file.bytes:,}"
    if digest.sha256 != file.sha256:
        return "has other content than was written (SHA-256)"
    columns = {name: type_name(kind) for name, kind in pl.read_parquet_schema(path).items()}
    if columns != table.columns:
        return "has other columns than snapshot.json says"
    rows = pl.scan_parquet(path, hive_partitioning=False).select(pl.len()).collect().item()
    return None if rows == file.rows else f"has {rows:,} rows instead of {file.rows:,}"
