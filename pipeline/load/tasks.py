"""What a worker process is given and gives back: its plan, the chunks and lines that it works on, and its counts.

Values only, which are pickled. How an export is cut into tasks is `pipeline.load.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.fhir.ndjson import Chunk
from pipeline.staging.parts import StagedExport
from pipeline.staging.schemas import FileLines
from pipeline.transform.plan import TransformPlan

__all__ = ["ChunkPiece", "ChunkReport", "ChunkTask", "LinesTask", "WorkerPlan"]


@dataclass(frozen=True)
class WorkerPlan:
    """What decides rows, where a worker reads, and where it writes."""

    transform: TransformPlan
    #: folder that `pipeline.publication.known_lines` wrote: what counts as unchanged; None: nothing does
    known: Path | None
    #: folder of `pipeline.staging.facts`, written after the first stage
    facts: Path
    staged: StagedExport
    #: the site's folder in the landing store
    landing: Path


@dataclass(frozen=True)
class ChunkPiece:
    """A part of one file, or all of it."""

    file: Path
    file_number: int
    chunk: Chunk


@dataclass(frozen=True)
class ChunkTask:
    """What is compared at a time. Files of one type that follow each other are put together: Epic's are small."""

    pieces: tuple[ChunkPiece, ...]
    resource_type: str
    #: of the chunk's lines only those from the first to before the second of these; None: all
    only: tuple[int, int] | None = None

    @property
    def part(self) -> str:
        """Name of the parts that the chunk writes: they sort in the order of the input."""
        first = self.pieces[0]
        return f"{first.file_number:06d}-{first.chunk.first_line:09d}{_suffix(self.only)}"

    @property
    def bytes(self) -> int:
        """Of the whole chunk, counted at its first part alone."""
        return 0 if self.only and self.only[0] else sum(piece.chunk.length for piece in self.pieces)

    @property
    def files(self) -> Mapping[int, Path]:
        """By file number."""
        return {piece.file_number: piece.file for piece in self.pieces}


@dataclass(frozen=True)
class LinesTask:
    """New lines of several chunks, which these left in staging."""

    chunks: tuple[ChunkTask, ...]
    resource_type: str
    #: of these lines only those from the first to before the second of these; None: all
    only: tuple[int, int] | None = None

    @property
    def part(self) -> str:
        return f"{self.chunks[0].part}{_suffix(self.only)}"

    @cached_property
    def files(self) -> Mapping[int, Path]:
        return {number: file for chunk in self.chunks for number, file in chunk.files.items()}


def _suffix(only: tuple[int, int] | None) -> str:
    """What a part's name ends with where it is of some of the lines."""
    return "" if only is None else f"+{only[0]:09d}"


@dataclass(frozen=True)
class ChunkReport:
    """Lines of a chunk, by the files of its pieces."""

    files: tuple[FileLines, ...]
    #: bytes of the lines that wait for a `LinesTask`
    waiting_bytes: int = 0
