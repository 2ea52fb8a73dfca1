"""NDJSON as bytes: cutting a chunk into lines. Knows no FHIR, and opens no file.

What a line is, and which lines are blank, is described in `pipeline.fhir.lines`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from pipeline.fhir.lines import BYTE_ORDER_MARK, is_blank

__all__ = ["Chunk", "Line", "Lines", "lines_of", "texts_of"]

_CR, _BRACE = b"\r{"

Integers = npt.NDArray[np.int64]


class Line(NamedTuple):
    number: int
    """1-based among the physical lines of the file."""
    offset: int
    """Byte offset in the file."""
    raw: bytes


@dataclass(frozen=True)
class Lines:
    """The non-blank lines of a chunk in their order, as places in its bytes: most are only hashed, and never copied."""

    content: bytes
    #: places in `content`: where each line begins, and where it ends without its line end
    starts: Integers
    ends: Integers
    #: 1-based among the physical lines of the file
    numbers: Integers
    #: byte offset in the file
    offsets: Integers

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Integers:
        """Bytes of each line."""
        return self.ends - self.starts

    @property
    def raws(self) -> list[bytes]:
        """All lines, copied."""
        return self.raws_at(np.arange(len(self)))

    def raws_at(self, places: Integers) -> list[bytes]:
        """Some of the lines, copied."""
        content = self.content
        bounds = zip(self.starts[places].tolist(), self.ends[places].tolist(), strict=True)
        return [content[start:end] for start, end in bounds]

    def hashes(self) -> Integers:
        """xxh3-128 of each line: its two halves, high and low, each as a signed little-endian integer."""
        content, digest = memoryview(self.content), xxhash.xxh3_128_digest
        bounds = zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        digests = b"".join([digest(content[start:end]) for start, end in bounds])
        return np.frombuffer(digests, "<i8").astype(np.int64).reshape(-1, 2)

    def slice(self, first: int, end: int) -> Lines:
        """The lines from the place `first` to before `end`."""
        kept = slice(first, end)
        places = (self.starts, self.ends, self.numbers, self.offsets)
        return Lines(self.content, *(each[kept] for each in places))

    def __iter__(self) -> Iterator[Line]:
        """One at a time, where speed does not matter."""
        return map(Line, self.numbers.tolist(), self.offsets.tolist(), self.raws)


@dataclass(frozen=True)
class Chunk:
    """Whole lines of one file: `length` bytes from `offset`; `first_line` is the number of the first (1-based)."""

    offset: int
    length: int
    first_line: int


def lines_of(content: bytes, chunk: Chunk) -> Lines:
    """The non-blank lines of a chunk's content, without their line ends; a byte order mark at the file's start is dropped."""
    first = len(BYTE_ORDER_MARK) if chunk.offset == 0 and content.startswith(BYTE_ORDER_MARK) else 0
    ends = _line_ends(content, first)
    starts = np.concatenate([np.array([first], np.int64), ends[:-1] + 1])[: len(ends)]
    numbers = np.arange(chunk.first_line, chunk.first_line + len(ends))
    characters = np.frombuffer(content, np.uint8)
    if b"\r" in content:  # CRLF files; the line's own bytes are what is hashed and kept
        ends = ends - ((ends > starts) & (characters[ends - 1] == _CR))
    # Most lines begin with a brace and need no closer look.
    braced = (ends > starts) & (characters[np.minimum(starts, len(content) - 1)] == _BRACE)
    if not braced.all():
        kept = braced
        for place in np.flatnonzero(~braced).tolist():
            kept[place] = not is_blank(content[starts[place] : ends[place]])
        starts, ends, numbers = starts[kept], ends[kept], numbers[kept]
    return Lines(content, starts, ends, numbers, starts + chunk.offset)


def _line_ends(content: bytes, first: int) -> Integers:
    """Where the lines from `first` on end: at each LF, and at the end of what follows the last one."""
    find, ends = content.find, []
    end = find(b"\n", first)
    while end >= 0:
        ends.append(end)
        end = find(b"\n", end + 1)
    if len(content) > (ends[-1] + 1 if ends else first):
        ends.append(len(content))
    return np.array(ends, np.int64)


def texts_of(raws: Sequence[bytes]) -> pl.Series:
    """Lines as texts, to be searched all at once. Bytes that are not UTF-8 are replaced."""
    try:
        return pl.Series("text", raws, dtype=pl.Binary).cast(pl.String)
    except pl.exceptions.ComputeError:
        return pl.Series("text", [raw.decode("utf-8", "replace") for raw in raws], dtype=pl.String)
