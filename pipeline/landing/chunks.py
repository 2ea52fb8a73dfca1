"""Landed files cut into chunks of whole lines, and the lines of a chunk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.fhir.ndjson import Chunk, Lines, lines_of
from pipeline.landing.reading import frames_of, open_landed, read_at, read_line

__all__ = ["CHUNK_BYTES", "chunk_contents", "plan_chunks", "read_lines"]

#: Large enough that polars' fixed costs vanish, small enough that a worker stays below a few hundred MB.
CHUNK_BYTES = 24 * 1024 * 1024
_READ = 4 * 1024 * 1024


def plan_chunks(file: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut a landed file at line ends into chunks of about `chunk_bytes`, or more where one line is longer.

    Chunks of a compressed file are whole frames, and only its table is read. A plain one is read once in blocks (about
    2 GB/s from the cache): memory does not grow with the file or its lines. Raises LandingError.
    """
    frames = frames_of(file, chunk_bytes)
    return _plain_chunks(file, chunk_bytes) if frames is None else iter([Chunk(*frame) for frame in frames])


def _plain_chunks(file: Path, chunk_bytes: int) -> Iterator[Chunk]:
    start = position = 0
    first_line = line = 1
    with open_landed(file) as stream:
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


def chunk_contents(file: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[Chunk, bytes]]:
    """The chunks of a landed file with their bytes; the file is opened once. Raises LandingError."""
    with open_landed(file) as stream:
        for chunk in plan_chunks(file, chunk_bytes):
            yield chunk, read_at(stream, file, chunk.offset, chunk.length)


def read_lines(file: Path, chunk: Chunk) -> Lines:
    """The non-blank lines of a chunk (`lines_of`). Raises LandingError."""
    return lines_of(read_line(file, chunk.offset, chunk.length), chunk)
