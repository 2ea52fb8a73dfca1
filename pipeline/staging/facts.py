"""Facts that resources leave for others, in files that worker processes map: one a name, sorted by resource.

A look-up is a binary search, so that its cost does not grow with the number of facts, and the processes share the pages.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.staging.parts import staging_errors

__all__ = ["Facts", "has_facts", "write_facts"]

_SCHEMA = {"surrogate_id": pl.Int64, "value": pl.String}

#: Values that are text in Python at a time while they are written.
_ROWS_AT_A_TIME = 100_000

Integers = npt.NDArray[np.int64]


def write_facts(folder: Path, facts: pl.LazyFrame) -> None:
    """Write facts (surrogate_id, name, value) for `Facts` to read. Of several of one name a resource has the least.

    Raises LandingError, also when the disk is full.
    """
    by_name = facts.collect().partition_by("name", as_dict=True)
    with staging_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for (name,), of_name in by_name.items():
            ordered = of_name.sort("surrogate_id", "value")  # four times as fast as grouping
            _write(folder, str(name), ordered.unique("surrogate_id", keep="first", maintain_order=True))


def has_facts(folder: Path, name: str) -> bool:
    """Whether `write_facts` wrote facts of this name."""
    return (folder / f"{name}.resources").exists()


def _write(folder: Path, name: str, facts: pl.DataFrame) -> None:
    with (folder / f"{name}.values").open("wb") as values:
        for part in facts["value"].to_frame().iter_slices(_ROWS_AT_A_TIME):
            values.write("".join(part["value"].to_list()).encode())
    ends = facts["value"].str.len_bytes().cast(pl.Int64).cum_sum()
    ends.to_numpy().tofile(folder / f"{name}.ends")
    facts["surrogate_id"].to_numpy().tofile(folder / f"{name}.resources")


@dataclass(frozen=True)
class _Mapped:
    """Facts of one name: resources in their order, and where the value of each ends among all values."""

    resources: Integers
    ends: Integers
    values: mmap.mmap

    def values_at(self, places: Integers) -> list[str]:
        starts = np.where(places > 0, self.ends[places - 1], 0).tolist()
        ends = self.ends[places].tolist()
        return [self.values[start:end].decode() for start, end in zip(starts, ends, strict=True)]


class Facts:
    """What `write_facts` wrote; nothing before it did."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mapped: dict[str, _Mapped] = {}

    def of(self, name: str, resources: pl.Series) -> pl.DataFrame:
        """Facts of one name about resources (surrogate ids): columns surrogate_id, value, at most one row each."""
        mapped = self._map(name)
        keys = resources.drop_nulls().unique().sort().to_numpy()
        if mapped is None or not len(keys):
            return pl.DataFrame(schema=_SCHEMA)
        places = np.minimum(np.searchsorted(mapped.resources, keys), len(mapped.resources) - 1)
        found = mapped.resources[places] == keys
        values = mapped.values_at(places[found])
        return pl.DataFrame({"surrogate_id": keys[found], "value": values}, schema=_SCHEMA)

    def _map(self, name: str) -> _Mapped | None:
        if name not in self._mapped:
            file = self._folder / f"{name}.resources"
            if not has_facts(self._folder, name):  # no such fact, or none yet
                return None
            with file.with_suffix(".values").open("rb") as values:
                mapped = mmap.mmap(values.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped[name] = _Mapped(_integers(file), _integers(file.with_suffix(".ends")), mapped)
        return self._mapped[name]


def _integers(file: Path) -> Integers:
    return np.asarray(np.memmap(file, np.int64, "r"))
