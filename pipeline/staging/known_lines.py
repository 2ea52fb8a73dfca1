"""Which lines and which contents of a site are known: files that worker processes map, instead of a table in each.

Two sets of pairs of 64-bit integers, each sorted by its first member: the halves of a known line's hash, with the
resource to which it belongs; and resource and content hash. They are written in bounded memory, whatever the number of
resources, and are looked up by binary search: the processes share the pages, and give them back after each look-up.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl
import psycopg

from pipeline.landing.files import landing_errors
from pipeline.staging.schemas import disk_errors

__all__ = ["KnownLines", "KnownWriter", "Pairs", "install_known", "merged_known", "write_known"]

Integers = npt.NDArray[np.int64]

#: Rows that are sorted at a time: as many of 24 and 16 bytes are in memory, and once more while they are sorted.
_ROWS_A_SORT = 2_000_000

#: Parts into which more rows are spilled before they are sorted. Hashes are spread evenly.
_PARTS = 256

#: Larger maps are searched in slices of this size, and the pages given back after each.
_MAPPED_BYTES = 160 * 1024 * 1024

#: Pages of the table that are read at a time: some 400,000 rows, 13 MB.
_PAGES = 8_192

#: What cannot be written on a full disk.
_WHAT = "What is known of a site's lines"

#: What is looked up, and how many integers a row has.
_LINES, _CONTENTS = ("lines", 3), ("contents", 2)


class KnownLines:
    """What `write_known` wrote. Nothing is known where it wrote nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.lines = Pairs(folder, *_LINES)
        self.contents = Pairs(folder, *_CONTENTS)

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
        wanted, other = np.asarray(first, np.int64), np.asarray(second, np.int64)
        known = np.zeros(len(wanted), np.bool_)
        rest = np.zeros((len(wanted), self.others.shape[1] - 1), np.int64)
        if not len(self):
            return known, rest
        order = np.argsort(wanted)  # neighbours share the pages
        for part in np.array_split(order, self._bytes // _MAPPED_BYTES + 1):
            known[part], rest[part] = self._found(wanted[part], other[part])
            if self._bytes > _MAPPED_BYTES:
                self._give_back()
        return known, rest

    def _found(self, wanted: Integers, other: Integers) -> tuple[npt.NDArray[np.bool_], Integers]:
        positions = np.searchsorted(self.first, wanted)
        known = np.zeros(len(wanted), np.bool_)
        rest = np.zeros((len(wanted), self.others.shape[1] - 1), np.int64)
        open_ = np.flatnonzero(positions < len(self))
        while len(open_):  # once, unless first integers repeat
            at = positions[open_]
            equal = self.first[at] == wanted[open_]
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


# --- writing -------------------------------------------------------------------------------------------------------


class KnownWriter:
    """Takes states in any order, and writes the files that `KnownLines` reads into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines, self._contents = _Sorter(folder, *_LINES), _Sorter(folder, *_CONTENTS)

    @property
    def is_spilled(self) -> bool:
        """Whether there are more rows than are sorted in memory."""
        return self._lines.is_spilled or self._contents.is_spilled

    def add(self, rows: Integers) -> None:
        """Rows: surrogate id, raw hash (high, low), content hash or 0. Raises LandingError on a full disk."""
        # No line has the hash 0: such a state is none to compare with. No content hash is 0.
        lined = rows[(rows[:, 1] != 0) | (rows[:, 2] != 0)]
        with disk_errors(_WHAT, self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lines.add(lined[:, [1, 2, 0]])
            self._contents.add(lined[lined[:, 3] != 0][:, [0, 3]])

    def finish(self) -> None:
        """Write the files. Raises LandingError on a full disk."""
        with disk_errors(_WHAT, self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lines.finish()
            self._contents.finish()


def write_known(connection: psycopg.Connection, folder: Path, site: str, fingerprints: Mapping[str, int]) -> None:
    """Write what counts as unchanged: lines and contents that were loaded or excluded under the fingerprint of their type.

    `fingerprints`: resource type → fingerprint, and "" for all other types. Raises LandingError on a full disk.
    """
    writer = KnownWriter(folder)
    for rows in _rows(connection, site, fingerprints):
        writer.add(rows)
    writer.finish()


def merged_known(folder: Path, writer: KnownWriter, removed: Integers) -> Path | None:
    """Write what the folder's files say with all rows of `removed` resources replaced by the writer's, a slice at a time.

    Returns the folder below with the new files, which `install_known` puts in the place of the others. None, where
    that is more than a small change: the files are to be written from the table. Raises LandingError on a full disk.
    """
    existing = KnownLines(folder)
    written = writer.folder
    if len(existing.lines):
        if writer.is_spilled:
            return None
        writer.finish()
        added, written = KnownLines(written), folder / "merged"
        shutil.rmtree(written, ignore_errors=True)  # of a process that was killed
        with disk_errors(_WHAT, folder):
            written.mkdir(mode=0o700)
            _merge(existing.lines, added.lines, removed, 2, written / _LINES[0])
            _merge(existing.contents, added.contents, removed, 0, written / _CONTENTS[0])
            shutil.rmtree(writer.folder)
    else:
        writer.finish()
    return written


def install_known(folder: Path, written: Path) -> None:
    """Put new files in the place of those of the folder. Raises LandingError."""
    with disk_errors(_WHAT, folder):
        for file in sorted(written.iterdir()):
            file.replace(folder / file.name)
        written.rmdir()


def _merge(existing: Pairs, added: Pairs, removed: Integers, resource_at: int, target: Path) -> None:
    """Write `existing` without the removed resources, which stand in one of its columns, and with what is added."""
    bounds = [*range(0, len(existing), _ROWS_A_SORT), len(existing)]
    gone = pl.Series(removed).implode()
    done = 0
    with target.with_suffix(".first").open("wb") as first_file, target.with_suffix(".others").open("wb") as others_file:
        for begin, end in pairwise(bounds):
            first, others = existing.first[begin:end], existing.others[begin:end]
            resources = others[:, resource_at - 1] if resource_at else first
            kept = ~pl.Series(resources).is_in(gone).to_numpy()
            if not kept.all():
                first, others = first[kept], others[kept]
            until = len(added) if end == len(existing) else int(np.searchsorted(added.first, existing.first[end]))
            if done < until:
                places = np.searchsorted(first, added.first[done:until])
                first = np.insert(first, places, added.first[done:until])
                others = np.insert(others, places, added.others[done:until], axis=0)
            done = until
            first_file.write(np.ascontiguousarray(first).data)
            others_file.write(np.ascontiguousarray(others).data)
        if not len(existing):
            first_file.write(added.first.data)
            others_file.write(added.others.data)


def _rows(connection: psycopg.Connection, site: str, fingerprints: Mapping[str, int]) -> Iterator[Integers]:
    """Blocks of rows: surrogate id, raw hash (high, low), content hash or 0.

    The server packs the rows of some pages into one value: COPY and cursors cost a message and an object a row. Nothing
    moves the site's rows between the queries, because whoever asks holds the site's lock.
    """
    named = [name for name in fingerprints if name]
    query = (
        "SELECT string_agg(int8send(surrogate_id) || int8send(raw_hash_high) || int8send(raw_hash_low)"
        " || int8send(coalesce(content_hash, 0)), ''::bytea) FROM resource_state AS state"
        " JOIN site_resource_type AS kind USING (site_resource_type_id)"
        " LEFT JOIN unnest(%s::text[], %s::bigint[]) AS mark (resource_type, fingerprint)"
        " ON mark.resource_type = kind.resource_type"
        " WHERE kind.site = %s AND state.fingerprint = coalesce(mark.fingerprint, %s)"
        " AND state.ctid >= %s::tid AND state.ctid < %s::tid"
    )
    parameters = (named, [fingerprints[name] for name in named], site, fingerprints[""])
    size = connection.execute(
        "SELECT pg_relation_size('resource_state') / current_setting('block_size')::bigint"
    ).fetchone()
    with connection.cursor(binary=True) as cursor:
        for page in range(0, size[0] if size else 0, _PAGES):
            packed = cursor.execute(query, (*parameters, f"({page},0)", f"({page + _PAGES},0)")).fetchone()
            if packed and packed[0]:
                yield np.frombuffer(packed[0], ">i8").reshape(-1, 4).astype(np.int64)


class _Sorter:
    """Rows in any order → the files of a `Pairs`. More rows than one sort takes are spilled to parts."""

    def __init__(self, folder: Path, name: str, width: int) -> None:
        self._folder, self._name, self._width = folder, name, width
        self._waiting: list[Integers] = []
        self._count = 0
        self.is_spilled = False

    def add(self, rows: Integers) -> None:
        self._waiting.append(rows)
        self._count += len(rows)
        if self._count >= _ROWS_A_SORT:
            self._spill()

    def finish(self) -> None:
        """Write the files, part after part; the parts are removed."""
        target = self._folder / self._name
        with target.with_suffix(".first").open("wb") as first, target.with_suffix(".others").open("wb") as others:
            if not self.is_spilled:
                _write_sorted(self._taken(), first, others)
                return
            self._spill()
            for part in map(self._part, range(_PARTS)):
                if part.exists():
                    _write_sorted(np.fromfile(part, np.int64).reshape(-1, self._width), first, others)
                    part.unlink()

    def _taken(self) -> Integers:
        rows = np.concatenate([np.empty((0, self._width), np.int64), *self._waiting])
        self._waiting, self._count = [], 0
        return rows

    def _spill(self) -> None:
        rows = self._taken()
        # Signed numbers: the lowest part holds the least. 16 bits: numpy then sorts without comparing.
        numbers = ((rows[:, 0] >> (65 - _PARTS.bit_length())) + _PARTS // 2).astype(np.int16)
        order = np.argsort(numbers, kind="stable")
        rows, bounds = rows[order], np.searchsorted(numbers[order], np.arange(_PARTS + 1))
        for number, (begin, end) in enumerate(pairwise(bounds)):
            if begin < end:
                with self._part(number).open("ab") as stream:
                    stream.write(rows[begin:end].data)
        self.is_spilled = True

    def _part(self, number: int) -> Path:
        return self._folder / f"{self._name}.{number:03d}"


def _write_sorted(rows: Integers, first: BinaryIO, others: BinaryIO) -> None:
    rows = rows[np.argsort(rows[:, 0].copy())]
    first.write(rows[:, 0].tobytes())
    others.write(rows[:, 1:].tobytes())
