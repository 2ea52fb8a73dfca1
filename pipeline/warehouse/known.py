"""Which lines and which contents of a site are known: files that worker processes map, instead of a table in each.

Two sets of pairs of 64-bit integers, each sorted by its first member: the halves of a known line's hash, with the
resource to which it belongs; and resource and content hash. They are written in bounded memory, whatever the number of
resources, and are looked up by binary search: the processes share the pages, and give them back after each look-up.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl
import psycopg

from pipeline.landing.files import landing_errors

__all__ = ["KnownLines", "write_known"]

Integers = npt.NDArray[np.int64]

#: Rows that are sorted at a time: as many of 24 and 16 bytes are in memory, and once more while they are sorted.
_ROWS_A_SORT = 2_000_000

#: Parts into which more rows are spilled before they are sorted. Hashes are spread evenly.
_PARTS = 256

#: Of a map, what a look-up touches before it gives the pages back.
_MAPPED_BYTES = 48 * 1024 * 1024

#: A row of COPY's binary format with four BIGINTs that are not NULL: number of fields, then length and value of each.
_COPY_ROW = np.dtype(
    [("fields", ">i2")] + [item for name in "abcd" for item in ((f"{name}_length", ">i4"), (name, ">i8"))]
)
_COPY_HEADER = 19
_COPY_BLOCK = 8 * 1024 * 1024

_LINES, _CONTENTS = ("high", "low", "line_id"), ("content_id", "content")


class KnownLines:
    """What `write_known` wrote. Nothing is known where it wrote nothing."""

    def __init__(self, folder: Path) -> None:
        self._lines = _Pairs(folder, _LINES)
        self._contents = _Pairs(folder, _CONTENTS)

    @property
    def has_contents(self) -> bool:
        return len(self._contents) > 0

    def resources_of_lines(self, lines: pl.DataFrame) -> pl.Series:
        """Surrogate ids by raw_hash_high and raw_hash_low, in the order of the rows; NULL: the line is not known."""
        found = self._lines.find(lines["raw_hash_high"], lines["raw_hash_low"])
        known = found >= 0
        ids = np.zeros(len(found), np.int64)
        ids[known] = self._lines.values("line_id", found[known])
        return pl.DataFrame({"id": ids, "known": known}).select(pl.when("known").then("id").alias("surrogate_id"))[
            "surrogate_id"
        ]

    def are_known(self, surrogate_ids: pl.Series, contents: pl.Series) -> pl.Series:
        """Whether the content (a content hash, or NULL) is the one that is known of the resource."""
        found = self._contents.find(surrogate_ids.fill_null(0), contents.fill_null(0))
        return pl.Series("is_known", found >= 0) & contents.is_not_null() & surrogate_ids.is_not_null()


class _Pairs:
    """Columns of equal length, mapped; rows are sorted by the first column."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self._first, self._second = columns[:2]
        self._maps = {name: _mapped(folder / name) for name in columns}
        self._columns = {name: np.frombuffer(pages or b"", np.int64) for name, pages in self._maps.items()}

    def __len__(self) -> int:
        return len(self._columns[self._first])

    def values(self, column: str, positions: Integers) -> Integers:
        found = self._columns[column][positions]
        self._give_back()
        return found

    def find(self, first: pl.Series, second: pl.Series) -> Integers:
        """Position of each pair, -1 for one that is not there."""
        wanted, other = np.asarray(first, np.int64), np.asarray(second, np.int64)
        found = np.full(len(wanted), -1, np.int64)
        if not len(self):
            return found
        order = np.argsort(wanted)  # neighbours share the pages
        slices = max(1, len(self) * 8 // _MAPPED_BYTES)
        for part in np.array_split(order, slices):
            found[part] = self._positions(wanted[part], other[part])
            self._give_back()
        return found

    def _positions(self, wanted: Integers, other: Integers) -> Integers:
        first, second = self._columns[self._first], self._columns[self._second]
        found = np.full(len(wanted), -1, np.int64)
        positions = np.searchsorted(first, wanted)
        open_ = np.flatnonzero(positions < len(first))
        while len(open_):  # once, unless first members repeat
            at = positions[open_]
            equal = first[at] == wanted[open_]
            open_, at = open_[equal], at[equal]
            match = second[at] == other[open_]
            found[open_[match]] = at[match]
            open_ = open_[~match]
            positions[open_] += 1
            open_ = open_[positions[open_] < len(first)]
        return found

    def _give_back(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            for pages in self._maps.values():
                if pages is not None:
                    pages.madvise(mmap.MADV_DONTNEED)


def _mapped(file: Path) -> mmap.mmap | None:
    """The file's pages; None where it is empty or missing."""
    if not file.exists() or not file.stat().st_size:
        return None
    with landing_errors(file), file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


# --- writing -------------------------------------------------------------------------------------------------------


def write_known(connection: psycopg.Connection, folder: Path, site: str, fingerprints: Mapping[str, int]) -> None:
    """Write what counts as unchanged: lines and contents that were loaded or excluded under the fingerprint of their type.

    `fingerprints`: resource type → fingerprint, and "" for all other types. Raises LandingError on a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with landing_errors(folder):
        lines, contents = _Sorter(folder, _LINES), _Sorter(folder, _CONTENTS)
        for rows in _rows(connection, site, fingerprints):
            # No line and no content has the hash 0: such a state is none to compare with.
            lines.add(rows[(rows[:, 1] != 0) | (rows[:, 2] != 0)][:, [1, 2, 0]])
            contents.add(rows[rows[:, 3] != 0][:, [0, 3]])
        lines.finish()
        contents.finish()


def _rows(connection: psycopg.Connection, site: str, fingerprints: Mapping[str, int]) -> Iterator[Integers]:
    """Blocks of rows: surrogate id, raw hash (high, low), content hash or 0."""
    named = [name for name in fingerprints if name]
    query = (
        "COPY (SELECT surrogate_id, raw_hash_high, raw_hash_low, coalesce(content_hash, 0) FROM resource_state"
        " JOIN site_resource_type AS kind USING (site_resource_type_id)"
        " LEFT JOIN unnest(%s::text[], %s::bigint[]) AS mark (resource_type, fingerprint)"
        " ON mark.resource_type = kind.resource_type"
        " WHERE kind.site = %s AND resource_state.fingerprint = coalesce(mark.fingerprint, %s))"
        " TO STDOUT (FORMAT binary)"
    )
    parameters = (named, [fingerprints[name] for name in named], site, fingerprints[""])
    with connection.cursor() as cursor, cursor.copy(query, parameters) as copy:
        waiting: list[bytes | bytearray | memoryview] = []
        size, begin = 0, _COPY_HEADER
        for message in copy:
            waiting.append(message)
            size += len(message)
            if size >= _COPY_BLOCK:
                block = b"".join(waiting)
                whole = (size - begin) // _COPY_ROW.itemsize
                yield _parsed(block, begin, whole)
                rest = block[begin + whole * _COPY_ROW.itemsize :]
                waiting, size, begin = [rest], len(rest), 0
        block = b"".join(waiting)
        yield _parsed(block, begin, (size - begin) // _COPY_ROW.itemsize)  # what remains is the trailer


def _parsed(block: bytes, begin: int, rows: int) -> Integers:
    read = np.frombuffer(block, _COPY_ROW, rows, begin)
    return np.stack([read[name].astype(np.int64) for name in "abcd"], axis=1)


class _Sorter:
    """Rows in any order → one file a column, sorted by the first. More rows than one sort takes are spilled to parts."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self._folder = folder
        self._columns = columns
        self._waiting: list[Integers] = []
        self._count = 0
        self._is_spilled = False

    def add(self, rows: Integers) -> None:
        self._waiting.append(rows)
        self._count += len(rows)
        if self._count >= _ROWS_A_SORT:
            self._spill()

    def finish(self) -> None:
        """Write the columns, part after part; the parts are removed."""
        with ExitStack() as stack:
            columns = [stack.enter_context((self._folder / name).open("wb")) for name in self._columns]
            if not self._is_spilled:
                self._write(columns, self._taken())
                return
            self._spill()
            for number in range(_PARTS):
                part = self._part(number)
                if part.exists():
                    self._write(columns, np.fromfile(part, np.int64).reshape(-1, len(self._columns)))
                    part.unlink()

    def _taken(self) -> Integers:
        rows = np.concatenate([np.empty((0, len(self._columns)), np.int64), *self._waiting])
        self._waiting, self._count = [], 0
        return rows

    def _spill(self) -> None:
        rows = self._taken()
        # Signed numbers: the lowest part holds the least of them.
        numbers = (rows[:, 0] >> (64 - _PARTS.bit_length() + 1)) + _PARTS // 2
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], np.arange(_PARTS + 1))
        for number in range(_PARTS):
            part = order[bounds[number] : bounds[number + 1]]
            if len(part):
                with self._part(number).open("ab") as stream:
                    stream.write(rows[part].tobytes())
        self._is_spilled = True

    def _part(self, number: int) -> Path:
        return self._folder / f"{self._columns[0]}.{number:03d}"

    @staticmethod
    def _write(columns: Sequence[BinaryIO], rows: Integers) -> None:
        order = np.argsort(rows[:, 0])
        for number, stream in enumerate(columns):
            stream.write(rows[order, number].tobytes())
