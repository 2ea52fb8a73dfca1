"""Writes which lines and which contents of a site are known: the files that `KnownLines` maps.

They are written in bounded memory, whatever the number of resources.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl
import psycopg

from pipeline.core.files import disk_errors, put_in_place
from pipeline.staging.known_lines import CONTENTS, LINES, KnownLines, Pairs

__all__ = ["KnownWriter", "install_known", "merged_known", "write_known"]

Integers = npt.NDArray[np.int64]

#: Rows that are sorted at a time: as many of 24 and 16 bytes are in memory, and once more while they are sorted.
_ROWS_A_SORT = 2_000_000

#: Parts into which more rows are spilled before they are sorted. Hashes are spread evenly.
_PARTS = 256

#: Pages of the table that are read at a time: some 400,000 rows, 13 MB.
_PAGES = 8_192

#: What cannot be written on a full disk.
_WHAT = "What is known of a site's lines"


class KnownWriter:
    """Takes states in any order, and writes the files that `KnownLines` reads into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines, self._contents = _Sorter(folder, *LINES), _Sorter(folder, *CONTENTS)

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
            _merge(existing.lines, added.lines, removed, 2, written / LINES[0])
            _merge(existing.contents, added.contents, removed, 0, written / CONTENTS[0])
            shutil.rmtree(writer.folder)
    else:
        writer.finish()
    return written


def install_known(folder: Path, written: Path) -> None:
    """Put new files in the place of those of the folder. Raises LandingError."""
    with disk_errors(_WHAT, folder):
        for file in sorted(written.iterdir()):
            put_in_place(file, folder / file.name, is_durable=False)
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
    moves the site's rows between the queries, because whoever asks has the site's lock.
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
