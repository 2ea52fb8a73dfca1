"""NDJSON as bytes: cutting a file into chunks and a chunk into lines. Knows no FHIR.

What a line is, and which lines are blank, is said in `pipeline.landing.lines`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from pipeline.landing.lines import is_blank

__all__ = ["CHUNK_BYTES", "Chunk", "Line", "Lines", "plan_chunks", "read_lines", "texts_of"]

#: Large enough that polars' fixed costs vanish, small enough that a worker stays below a few hundred MB.
CHUNK_BYTES = 24 * 1024 * 1024
_READ = 4 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    number: int
    """1-based among the physical lines of the file."""
    offset: int
    """Byte offset in the file."""
    raw: bytes


@dataclass(frozen=True)
class Lines:
    """Lines in their order, without an object a line: what stands at one place belongs together."""

    raws: list[bytes]
    #: Int64: 1-based among the physical lines of the file
    numbers: pl.Series
    #: Int64: byte offset in the file
    offsets: pl.Series

    def __iter__(self) -> Iterator[Line]:
        """One at a time, where speed does not matter."""
        return map(Line, self.numbers, self.offsets, self.raws)


@dataclass(frozen=True)
class Chunk:
    """Whole lines of one file: `length` bytes from `offset`; `first_line` is the number of the first (1-based)."""

    offset: int
    length: int
    first_line: int


def plan_chunks(file: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut a file at newlines into chunks of about `chunk_bytes`, or more where one line is longer.

    Reads the file once in blocks (about 2 GB/s from the cache): memory does not grow with the file or its lines.
    """
    start = position = 0
    first_line = line = 1
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(_READ):
            newlines = block.count(b"\n")
            end = block.rfind(b"\n") + 1
            if end and position + end - start >= chunk_bytes:
                yield Chunk(start, position + end - start, first_line)
                start, first_line = position + end, line + newlines
            position += len(block)
            line += newlines
    if position > start:
        yield Chunk(start, position - start, first_line)


def read_lines(file: Path, chunk: Chunk) -> Lines:
    """The non-blank lines of a chunk, without their line ends; a byte order mark at the file's start is dropped."""
    with file.open("rb", buffering=0) as stream:
        stream.seek(chunk.offset)
        data = stream.read(chunk.length)
    start = chunk.offset
    if start == 0 and data.startswith(_BOM):
        data, start = data[len(_BOM) :], len(_BOM)
    raws = data.split(b"\n")
    lengths = pl.Series(map(len, raws), dtype=pl.Int64)
    offsets = (lengths + 1).cum_sum().shift(1, fill_value=0) + start
    numbers = pl.int_range(chunk.first_line, chunk.first_line + len(raws), dtype=pl.Int64, eager=True)
    if b"\r" in data:  # CRLF files; the line's own bytes are what is hashed and kept
        raws = [raw.removesuffix(b"\r") for raw in raws]
    # 0x7B: most lines begin with a brace and need no closer look
    kept = [place for place, raw in enumerate(raws) if raw and (raw[0] == 0x7B or not is_blank(raw))]
    if len(kept) < len(raws):
        raws = [raws[place] for place in kept]
        numbers, offsets = numbers.gather(kept), offsets.gather(kept)
    return Lines(raws, numbers, offsets)


def texts_of(raws: Sequence[bytes]) -> pl.Series:
    """Lines as texts, to be searched all at once. Bytes that are not UTF-8 are replaced."""
    try:
        return pl.Series("text", raws, dtype=pl.Binary).cast(pl.String)
    except pl.exceptions.ComputeError:
        return pl.Series("text", [raw.decode("utf-8", "replace") for raw in raws], dtype=pl.String)
