"""Staging: the Parquet parts that the transform stage leaves for an export, and how they are read back.

`staging/<site>/<export_id>/<kind>/<file>-<chunk>.parquet`, where kind is one of `pipeline.staging.schemas`.
Parts are read in the order of their names, so that ids do not depend on which worker was faster.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.core.errors import LandingError
from pipeline.core.files import disk_errors, put_in_place, temporary_name
from pipeline.staging.schemas import SCHEMAS, exact_kind, staged_columns

__all__ = ["StagedExport", "clear_site", "staging_errors", "staging_for", "write_frame"]

#: Rows of parts that are read together; a part of more is a frame of its own.
_ROWS_TOGETHER = 100_000


def write_frame(target: Path, frame: pl.DataFrame) -> None:
    """Write a frame under a temporary name, then rename it. Raises LandingError, also when the disk is full."""
    temporary = temporary_name(target)
    try:
        with staging_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            frame.write_parquet(temporary, compression="lz4", statistics=False)
            put_in_place(temporary, target, is_durable=False)
    except LandingError:
        temporary.unlink(missing_ok=True)
        raise


def staging_errors(folder: Path) -> AbstractContextManager[None]:
    """`disk_errors` of staging."""
    return disk_errors("Staging", folder)


@dataclass(frozen=True)
class StagedExport:
    """The staging folder of one export."""

    folder: Path

    def write(self, kind: str, part: str, frame: pl.DataFrame) -> None:
        """Write one part; an empty frame writes nothing. Raises LandingError on a full disk."""
        if not frame.is_empty():
            write_frame(self.folder / kind / f"{part}.parquet", frame)

    def discard(self, part: str, kept: Sequence[str] = ()) -> None:
        """Remove what was written under the name of one part, also by resource type, but for the kinds `kept`."""
        for kind in self.kinds():
            if kind not in kept:
                for path in [self.folder / kind / f"{part}.parquet", *(self.folder / kind).glob(f"{part}-*.parquet")]:
                    path.unlink(missing_ok=True)

    def read(self, kind: str, part: str) -> pl.DataFrame:
        """One part, which was written."""
        return pl.read_parquet(self.folder / kind / f"{part}.parquet")

    def parts(self, kind: str) -> list[Path]:
        return sorted((self.folder / kind).glob("*.parquet"))

    def parts_of(self, kind: str, resource_type: str) -> list[Path]:
        """Those of one resource type, of a kind that is written type by type (rows and facts)."""
        return sorted((self.folder / kind).glob(f"*-{resource_type}.parquet"))

    def kinds(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir()) if self.folder.exists() else []

    def frames(self, kind: str, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """The rows in the order of the parts, some parts together: each query on a frame costs the same however few its
        rows. A column with numbers that a double cannot hold comes as text (`exact_kind`). `columns`: no others.
        """
        together: list[pl.DataFrame] = []
        for frame in self._part_frames(kind, columns):
            rows = frame.height + sum(earlier.height for earlier in together)
            if together and (rows > _ROWS_TOGETHER or frame.schema != together[0].schema):
                yield pl.concat(together, rechunk=True)
                together = []
            together.append(frame)
        if together:
            yield pl.concat(together, rechunk=True)

    def _part_frames(self, kind: str, columns: Sequence[str] | None) -> Iterator[pl.DataFrame]:
        exact = self.folder / exact_kind(kind)
        has_exact = columns is None and exact.exists()
        for part in self.parts(kind):
            frame = pl.read_parquet(part, columns=None if columns is None else list(columns))
            texts = exact / part.name
            yield _with_texts(frame, pl.read_parquet(texts)) if has_exact and texts.exists() else frame

    def scan(self, kind: str) -> pl.LazyFrame:
        """All parts of a kind as one lazy frame, empty with the kind's schema where there are none."""
        parts = self.parts(kind)
        return pl.scan_parquet(parts) if parts else pl.LazyFrame(schema=SCHEMAS.get(kind) or staged_columns(kind))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _with_texts(frame: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    key = ["surrogate_id", "row_key"]
    frame = frame.join(texts, on=key, how="left", maintain_order="left", suffix="_text")
    names = [name for name in texts.columns if name not in key]
    exact = [pl.coalesce(f"{name}_text", pl.col(name).cast(pl.String)).alias(name) for name in names]
    return frame.with_columns(exact).drop(f"{name}_text" for name in names)


def clear_site(root: Path, site: str) -> None:
    """Remove what interrupted runs of a site left in staging. The caller holds the site's lock: no other run lives."""
    shutil.rmtree(root / site, ignore_errors=True)


def staging_for(root: Path, site: str, export_id: int) -> StagedExport:
    return StagedExport(root / site / str(export_id))
