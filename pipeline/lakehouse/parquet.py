"""Frames → the Parquet files of one table: a folder for each year, files of bounded size, a digest of each.

What a file is called and how large it may grow is decided here; which rows come, and in which order, is not.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipeline.core.errors import LandingError
from pipeline.core.files import make_folder, write_whole
from pipeline.lakehouse.layout import YEAR, LakeTable
from pipeline.landing.files import file_digest

__all__ = ["FILE_BYTES", "LakeFile", "TableWriter"]

#: A file is closed when its rows take so much memory: about a fifth of it on the disk, as zstd.
FILE_BYTES = 128 << 20
#: Rows of a row group: what DuckDB gives to one thread, and of what statistics are kept.
_ROW_GROUP = 122_880
#: How Hive names the partition of rows that have no value; DuckDB and Spark read it as NULL.
_NO_YEAR = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class LakeFile:
    """One file of a snapshot; `path` is relative to the snapshot's folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass
class TableWriter:
    """Takes a table's frames in the order of their years, and writes a file when one is full or its year over.

    `former`: the files of the snapshot before, in `former_folder`, by path. A file that has come out the same is a
    hard link to it, so that another snapshot costs the disk only what has changed.
    """

    snapshot: Path
    table: LakeTable
    former_folder: Path | None = None
    former: Mapping[str, LakeFile] = field(default_factory=dict)
    file_bytes: int = FILE_BYTES
    files: list[LakeFile] = field(default_factory=list)
    _pending: list[pl.DataFrame] = field(default_factory=list)
    _pending_bytes: int = 0
    _year: int | None = None
    _number: int = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Raises LandingError when a file cannot be written."""
        if self.table.date is None:
            self._add(frame)
            return
        for part in frame.partition_by(YEAR, maintain_order=True):
            year = part[YEAR][0]
            if year != self._year:
                self._flush()
                self._year, self._number = year, 0
            self._add(part.drop(YEAR))

    def close(self) -> list[LakeFile]:
        """Write what is left; a table without rows is one file without rows, so that its columns are known."""
        self._flush()
        if not self.files:
            # Year 0 is not a year: with a number, readers find the partition column's type also in an empty table.
            self._year = 0
            self._write(pl.DataFrame(schema=dict(self.table.columns)))
        return self.files

    def _add(self, frame: pl.DataFrame) -> None:
        self._pending.append(frame)
        self._pending_bytes += int(frame.estimated_size())
        if self._pending_bytes >= self.file_bytes:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            frames, self._pending, self._pending_bytes = self._pending, [], 0
            self._write(pl.concat(frames, rechunk=True))

    def _write(self, frame: pl.DataFrame) -> None:
        path = f"{self._folder()}/part-{self._number:05d}.parquet"
        self._number += 1
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd", compression_level=3, row_group_size=_ROW_GROUP)
        content = buffer.getvalue()
        file = LakeFile(path, frame.height, len(content), hashlib.sha256(content).hexdigest())
        target = self.snapshot / path
        make_folder(target.parent)
        if not self._linked(file, target):
            write_whole(target, content)
        self.files.append(file)

    def _folder(self) -> str:
        if self.table.date is None:
            return self.table.path
        return f"{self.table.path}/{YEAR}={_NO_YEAR if self._year is None else self._year}"

    def _linked(self, file: LakeFile, target: Path) -> bool:
        if self.former_folder is None or self.former.get(file.path) != file:
            return False
        old = self.former_folder / file.path
        try:
            if file_digest(old).sha256 != file.sha256:  # it was damaged since
                return False
            os.link(old, target)
        except (LandingError, OSError):  # it is gone, has too many names, or the file system knows no links
            return False
        return True
