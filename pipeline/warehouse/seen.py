"""Which resources an export held: a small Parquet file an export, kept beside landing.

An unchanged line leaves the state of its resource as it is, so that nothing is written for it. When exports are loaded
out of their order it must be known all the same that a newer one had confirmed the resource.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from pipeline.warehouse.staging import OUTCOME, UNCHANGED, StagedExport

__all__ = ["forget_seen", "read_seen", "write_seen"]


def _file(home: Path, site: str, export_id: int) -> Path:
    return home / "seen" / site / f"{export_id}.parquet"


def write_seen(home: Path, site: str, export_id: int, staged: StagedExport, refused: pl.DataFrame) -> None:
    """Keep the surrogate ids of all lines that were not rejected. Written before the commit; only read after it.

    `refused` (surrogate_id, file_number, line …) are rejected by publication: their person is missing.
    """
    file = _file(home, site, export_id)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    line = ["surrogate_id", "file_number", "line"]
    accepted = staged.scan(OUTCOME).filter(pl.col("outcome") != "rejected")
    accepted = accepted.join(refused.lazy(), on=line, how="anti").select("surrogate_id")
    every = (
        pl.concat([accepted, staged.scan(UNCHANGED).select("surrogate_id")]).drop_nulls().unique().sort("surrogate_id")
    )
    temporary = file.with_suffix(".tmp")
    every.collect().write_parquet(temporary)
    temporary.replace(file)


def forget_seen(home: Path, site: str, surrogate_ids: Iterable[int]) -> None:
    """Take resources out of what a site's exports held: their person is erased. Each file is whole at any moment."""
    gone = pl.LazyFrame({"surrogate_id": list(surrogate_ids)}, schema={"surrogate_id": pl.Int64})
    for left in (home / "seen" / site).glob("*.tmp"):  # of a process that was killed
        left.unlink()
    for file in sorted((home / "seen" / site).glob("*.parquet")):
        seen = pl.read_parquet(file)
        kept = seen.lazy().join(gone, on="surrogate_id", how="anti", maintain_order="left").collect()
        if kept.height < seen.height:
            temporary = file.with_suffix(".tmp")
            kept.write_parquet(temporary)
            temporary.replace(file)


def read_seen(home: Path, site: str, export_ids: Iterable[int]) -> pl.LazyFrame:
    """Column surrogate_id: what any of the exports held. An export without a file adds nothing."""
    files = [file for number in export_ids if (file := _file(home, site, number)).exists()]
    return pl.scan_parquet(files) if files else pl.LazyFrame(schema={"surrogate_id": pl.Int64})
