"""Which lines and which contents of a site are known: files that worker processes map, instead of a table in each.

Two sets of pairs of 64-bit integers, each sorted by its first member: the halves of a known line's hash, with the
resource to which it belongs; and resource and content hash. `pipeline.publication.known_lines` writes them. They are
looked up by binary search: the processes share the pages, and give them back after each look-up.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.core.files import landing_errors

__all__ = ["CONTENTS", "LINES", "KnownLines", "Pairs"]

Integers = npt.NDArray[np.int64]


#: Larger maps are searched in slices of this size, and the pages given back after each.
_MAPPED_BYTES = 160 * 1024 * 1024


#: What is looked up, and how many integers a row has.
LINES, CONTENTS = ("lines", 3), ("contents", 2)


class KnownLines:
    """What `write_known` wrote. Nothing is known where it wrote nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.lines = Pairs(folder, *LINES)
        self.contents = Pairs(folder, *CONTENTS)

    @property
    def has_contents(self) -> bool:
        return len(self.contents) > 0

    def resources_of_lines(self, lines: pl.DataFrame) -> pl.Series:
        """Surrogate ids by raw_hash_high and raw_hash_low, in the order of the rows; NULL: the line is not known."""
        known, rest = self.lines.find(lines["raw_hash_high"], lines["raw_hash_low"])
        found = pl.DataFrame({"known": known, "surrogate_id": rest[:, 0]})
        return found.select(pl.when("known").then("surrogate_id").alias("surrogate_id"))["surrogate_id"]

    def are_known(self, surrogate_ids: pl.Series, contents: pl.Series) -> pl.Series:
        """Whether the content (a content hash, or NULL) is the one that is known of the resource."""
        known, _ = self.contents.find(surrogate_ids.fill_null(0), contents.fill_null(0))
        return pl.Series("is_known", known) & contents.is_not_null() & surrogate_ids.is_not_null()


class Pairs:
    """Rows of integers, mapped, sorted by the first one. That lies in a file of its own, for the search's sake."""

    def __init__(self, folder: Path | None, name: str, width: int) -> None:
        files = [folder / f"{name}.{part}" for part in ("first", "others")] if folder else []
        self._maps = [_mapped(file) for file in files] or [None, None]
        first, others = (np.frombuffer(pages or b"", np.int64) for pages in self._maps)
        self.first, self.others = first, others.reshape(-1, width - 1)
        self._bytes = first.nbytes + others.nbytes

    def __len__(self) -> int:
        return len(self.first)

    def find(self, first: pl.Series, second: pl.Series) -> tuple[npt.NDArray[np.bool_], Integers]:
        """Whether each pair is there, and what stands beside it in its row."""
        keys, other = np.asarray(first, np.int64), np.asarray(second, np.int64)
        known = np.zeros(len(keys), np.bool_)
        rest = np.zeros((len(keys), self.others.shape[1] - 1), np.int64)
        if not len(self):
            return known, rest
        order = np.argsort(keys)  # neighbours share the pages
        for part in np.array_split(order, self._bytes // _MAPPED_BYTES + 1):
            known[part], rest[part] = self._found(keys[part], other[part])
            if self._bytes > _MAPPED_BYTES:
                self._give_back()
        return known, rest

    def _found(self, keys: Integers, other: Integers) -> tuple[npt.NDArray[np.bool_], Integers]:
        positions = np.searchsorted(self.first, keys)
        known = np.zeros(len(keys), np.bool_)
        rest = np.zeros((len(keys), self.others.shape[1] - 1), np.int64)
        open_ = np.flatnonzero(positions < len(self))
        while len(open_):  # once, unless first integers repeat
            at = positions[open_]
            equal = self.first[at] == keys[open_]
            open_, at = open_[equal], at[equal]
            rows = self.others[at]
            match = rows[:, 0] == other[open_]
            known[open_[match]] = True
            rest[open_[match]] = rows[match, 1:]
            open_ = open_[~match]
            positions[open_] += 1
            open_ = open_[positions[open_] < len(self)]
        return known, rest

    def _give_back(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            for pages in self._maps:
                if pages is not None:
                    pages.madvise(mmap.MADV_DONTNEED)


def _mapped(file: Path) -> mmap.mmap | None:
    """The file's pages; None where it is empty or missing."""
    if not file.exists() or not file.stat().st_size:
        return None
    with landing_errors(file), file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
