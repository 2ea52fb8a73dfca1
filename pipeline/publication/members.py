"""Which resources an export has, its members: a small Parquet file an export, kept next to landing under `seen`.

An unchanged line leaves the state of its resource as it is, so that nothing is written for it. When exports are loaded
out of their order it must be known all the same that a newer one had confirmed the resource; and when a resource is
missing in a group's export, that earlier ones had it.

A file is written before the commit of its publication. It counts only when the database says that the export is
published (`etl.group_export`, `export_job.published_at`), so that a publication that is rolled back leaves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import psycopg

from pipeline.core.errors import LandingError
from pipeline.core.files import disk_errors, put_in_place
from pipeline.staging.outcomes import LineOutcome
from pipeline.staging.parts import StagedExport
from pipeline.staging.schemas import OUTCOME, UNCHANGED

__all__ = ["forget_members", "members_of", "read_accepted", "read_members", "write_members"]

_ID = ["surrogate_id"]


def _file(home: Path, site: str, export_id: int) -> Path:
    return home / "seen" / site / f"{export_id}.parquet"


def members_of(staged: StagedExport, deletions: Iterable[int]) -> pl.LazyFrame:
    """Column surrogate_id, not unique: every resource of which the export has a line, also one that is rejected.

    `deletions` are the numbers of the files whose entries say that a resource is deleted.
    """
    changed = staged.scan(OUTCOME).filter(~pl.col("file_number").is_in(list(deletions))).select(_ID)
    return pl.concat([changed, staged.scan(UNCHANGED).select(_ID)]).drop_nulls()


def write_members(
    home: Path, site: str, export_id: int, staged: StagedExport, rejected: pl.DataFrame, deletions: Iterable[int] = ()
) -> None:
    """Keep the members of an export. Columns: surrogate_id (sorted), accepted, held.

    `accepted`: a line of the resource was not rejected; `rejected` (surrogate_id, file_number, line …) are rejected by
    publication, because their person is missing. `held`: the resource is there, accepted or not; not so one whose entry
    says that it is deleted.
    """
    file = _file(home, site, export_id)
    line = ["surrogate_id", "file_number", "line"]
    lines, accepted = staged.scan(OUTCOME), pl.col("outcome") != LineOutcome.REJECTED
    if not rejected.is_empty():
        lines = lines.join(rejected.lazy().select(*line, pl.lit(True).alias("is_rejected")), on=line, how="left")
        accepted &= pl.col("is_rejected").is_null()
    lines = lines.select(
        "surrogate_id",
        accepted.alias("accepted"),
        (~pl.col("file_number").is_in(list(deletions))).alias("held"),
    ).drop_nulls("surrogate_id")
    # Sorted, equal ids stand side by side: a fraction of what grouping millions costs. A resource with an unchanged
    # line is both, whatever its other lines are.
    unchanged = staged.scan(UNCHANGED).select(_ID).sort("surrogate_id").filter(_is_first()).collect()
    others = lines.join(unchanged.lazy(), on="surrogate_id", how="anti").group_by("surrogate_id").agg(pl.all().any())
    both = unchanged.with_columns(pl.lit(True).alias("accepted"), pl.lit(True).alias("held"))
    _write(file, both.merge_sorted(others.sort("surrogate_id").collect(), key="surrogate_id"))


def _is_first() -> pl.Expr:
    """Of sorted ids, each that is not the one before."""
    return pl.col("surrogate_id").ne_missing(pl.col("surrogate_id").shift(1))


def forget_members(connection: psycopg.Connection, home: Path, site: str, surrogate_ids: Iterable[int]) -> None:
    """Take resources out of the members of a site's exports: their person is erased. Each file is whole at any moment.

    `connection` has the etl schema on its search_path. The count of members by which a file is recognized follows
    it, and is committed before the file is replaced: between the two the file counts as lost, and after a crash the
    erasure that is resumed comes to the same count again. Raises LandingError.
    """
    gone = pl.LazyFrame({"surrogate_id": list(surrogate_ids)}, schema={"surrogate_id": pl.Int64})
    for left in (home / "seen" / site).glob("*.tmp"):  # of a process that was killed
        left.unlink()
    for file in sorted((home / "seen" / site).glob("*.parquet")):
        members = pl.read_parquet(file)
        kept = members.lazy().join(gone, on="surrogate_id", how="anti", maintain_order="left").collect()
        if kept.height < members.height:
            if "held" in members.columns:
                connection.execute(
                    "UPDATE group_export SET members = %(kept)s WHERE export_id = %(export)s AND members = %(former)s",
                    {"kept": kept["held"].sum(), "former": members["held"].sum(), "export": int(file.stem)},
                )
                connection.commit()
            _write(file, kept)


def _write(file: Path, members: pl.DataFrame) -> None:
    temporary = file.with_suffix(".tmp")
    try:
        with disk_errors("The members of an export", file.parent):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            members.write_parquet(temporary)
            put_in_place(temporary, file, is_durable=False)
    except LandingError:
        temporary.unlink(missing_ok=True)
        raise


def read_accepted(home: Path, site: str, export_ids: Iterable[int]) -> pl.LazyFrame:
    """Column surrogate_id: of what any of the exports had an accepted line. An export without a file adds nothing."""
    files = [file for number in export_ids if (file := _file(home, site, number)).exists()]
    frames = [pl.scan_parquet(file) for file in files]
    accepted = [
        # Files of the first form have accepted lines only.
        (frame.filter("accepted") if "accepted" in frame.collect_schema() else frame).select(_ID)
        for frame in frames
    ]
    return pl.concat(accepted) if accepted else pl.LazyFrame(schema={"surrogate_id": pl.Int64})


def read_members(home: Path, site: str, export_id: int, members: int | None = None) -> pl.LazyFrame | None:
    """Column surrogate_id, sorted: the export's members. None when that is not known any more: the file is lost, of the
    first form, or not of as many resources (`members`) as the database says."""
    file = _file(home, site, export_id)
    if not file.exists():
        return None
    try:
        frame = pl.scan_parquet(file)
        if "held" not in frame.collect_schema():
            return None
        found = frame.filter("held").select(_ID)
        if members is not None and found.select(pl.len()).collect().item() != members:
            return None
    except (OSError, pl.exceptions.PolarsError):
        return None
    return found
