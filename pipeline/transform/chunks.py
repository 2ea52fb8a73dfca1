"""The comparison: landed lines, chunk by chunk and in worker processes, with what is loaded.

Lines that are known by their bytes or their content are unchanged, and nothing more is done about them. A chunk of which
much is new goes through the transform at once. Few lines are kept with their places: they are put together with those of
other chunks, because what polars asks for a frame does not grow with its rows, and a night has few in each chunk.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.fhir.ndjson import Chunk, Lines
from pipeline.landing.chunks import read_lines
from pipeline.staging import schemas
from pipeline.staging.schemas import FileLines
from pipeline.transform.content import Contents
from pipeline.transform.lines import LinesTransform
from pipeline.transform.plan import TransformPlan, Worker

__all__ = [
    "ChunkPiece",
    "ChunkReport",
    "ChunkTask",
    "LinesTask",
    "count_lines",
    "is_ready",
    "reject_line",
    "start_worker",
    "transform_chunk",
    "transform_lines",
]

#: A chunk with fewer new lines, and with fewer than one in so many, leaves them to be put together with others'.
_FEW_LINES = 4_000
_FEW_AMONG = 4


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
        return f"{first.file_number:06d}-{first.chunk.first_line:09d}{_of_some(self.only)}"

    @property
    def bytes(self) -> int:
        """Of the whole chunk, said by its first part alone."""
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
        return f"{self.chunks[0].part}{_of_some(self.only)}"

    @cached_property
    def files(self) -> Mapping[int, Path]:
        return {number: file for chunk in self.chunks for number, file in chunk.files.items()}


def _of_some(only: tuple[int, int] | None) -> str:
    """What a part's name has where it is of some of the lines."""
    return "" if only is None else f"+{only[0]:09d}"


@dataclass(frozen=True)
class ChunkReport:
    """What came of a chunk, by the files of its pieces."""

    files: tuple[FileLines, ...]
    #: bytes of the lines that wait for a `LinesTask`
    waiting_bytes: int = 0


_worker: Worker | None = None


def start_worker(plan: TransformPlan) -> None:
    """Initialiser of a worker process."""
    global _worker  # noqa: PLW0603 - one worker a process is what a process pool's initialiser is for
    _worker = Worker(plan)


def is_ready() -> bool:
    """True in a process that `start_worker` prepared: the first answer says that the processes have started."""
    return _worker is not None


def transform_chunk(task: ChunkTask) -> ChunkReport:
    """Compare one chunk, in the process that `start_worker` prepared, and transform what is new unless that is little."""
    assert _worker is not None, "start_worker must run first"
    _worker.bound_memory()
    with _without_collection():
        return _Comparison(_worker, task).run()


def transform_lines(task: LinesTask) -> None:
    """Transform the lines that chunks left, in the process that `start_worker` prepared. Raises LandingError."""
    assert _worker is not None, "start_worker must run first"
    _worker.bound_memory()
    with _without_collection():
        lines, raws = _waiting(_worker, task)
        LinesTransform(_worker, task, lines, raws, list(range(len(raws))), Contents(_worker)).run()


def count_lines(task: ChunkTask | LinesTask) -> int:
    """The lines of a task that is to be cut: those that it transforms, or compares."""
    assert _worker is not None, "start_worker must run first"
    if task.only is not None:
        return task.only[1] - task.only[0]
    if isinstance(task, LinesTask):
        return len(_waiting(_worker, task)[1])
    return sum(len(read_lines(piece.file, piece.chunk)) for piece in task.pieces)


def reject_line(task: ChunkTask | LinesTask, reason: str) -> ChunkReport:
    """The only line of a task becomes a dead letter, and is not looked at but for its type and id.

    Its id is looked for in its bytes: to read it as JSON may be what broke a process.
    """
    assert _worker is not None, "start_worker must run first"
    worker = _worker
    if isinstance(task, LinesTask):
        lines, [raw] = _waiting(worker, task)
    else:
        comparison = _Comparison(worker, task)
        lines, [raw] = comparison.only_lines()
    found = re.search(rb'"id"\s*:\s*"([^"\\]{1,128})"', raw)
    resource_id = found[1].decode(errors="replace") if found else None
    known = lines.with_columns(
        pl.lit(task.resource_type).alias("resource_type"),
        pl.lit(resource_id, dtype=pl.String).alias("resource_id"),
        pl.lit(worker.keys.of(task.resource_type, resource_id) if resource_id else None, dtype=pl.Int64).alias(
            "surrogate_id"
        ),
        pl.lit("rejected").alias("outcome"),
        pl.lit(reason).alias("reason"),
        pl.lit(None, dtype=pl.Int64).alias("content_hash"),
        pl.lit("transform").alias("stage"),
        pl.lit("worker_failed").alias("code"),
        pl.lit(None, dtype=pl.String).alias("path"),
        pl.lit(None, dtype=pl.Int64).alias("cause"),
    )
    worker.plan.staged.write(schemas.OUTCOME, task.part, known.select(*schemas.OUTCOME_SCHEMA))
    worker.plan.staged.write(schemas.REJECTION, task.part, known.select(*schemas.REJECTION_SCHEMA))
    return ChunkReport(tuple(FileLines(number, 1, 0, 0) for number in lines["file_number"]))


def _waiting(worker: Worker, task: LinesTask) -> tuple[pl.DataFrame, list[bytes]]:
    """The lines that chunks left: their places, numbered, and what they hold."""
    left = pl.concat([worker.plan.staged.read(schemas.WAITING, chunk.part) for chunk in task.chunks])
    if task.only is not None:
        left = left.slice(task.only[0], task.only[1] - task.only[0])
    places = left.drop("raw").with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("index"))
    return places, left["raw"].to_list()


@contextmanager
def _without_collection() -> Iterator[None]:
    """Neither parsed JSON nor frames hold cycles, and looking for some in ever more rows takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Comparison:
    """One chunk: which of its lines are unchanged, and what becomes of the others."""

    def __init__(self, worker: Worker, task: ChunkTask) -> None:
        self.worker = worker
        self.task = task
        self.contents = Contents(worker)

    def run(self) -> ChunkReport:
        pieces = self._pieces()
        counts = [len(piece) for piece in pieces]
        if not sum(counts):
            return self._report(counts, pl.Series(dtype=pl.Int32), pl.Series(dtype=pl.Int32))
        self.lines = self._hashed(pieces)
        unchanged = self._unchanged()
        of_content = unchanged.clear()
        waiting = 0
        if len(unchanged) < len(self.lines):
            raws, new = self._new_lines(pieces, unchanged)
            del pieces  # the chunk's bytes: the lines that are needed are copied
            of_content = self._unchanged_content(raws, new)
            unchanged = pl.concat([unchanged, of_content])
            same = set(of_content["index"])
            waiting = self._transform(raws, [index for index in new if index not in same])
        self._write(schemas.UNCHANGED, unchanged.select("surrogate_id", "file_number", "line"))
        return self._report(counts, unchanged["file_number"], of_content["file_number"], waiting)

    def only_lines(self) -> tuple[pl.DataFrame, list[bytes]]:
        """The lines of the task, as `LinesTransform` takes them, and their bytes."""
        pieces = self._pieces()
        return self._hashed(pieces), [raw for piece in pieces for raw in piece.raws]

    def _pieces(self) -> list[Lines]:
        pieces = [read_lines(piece.file, piece.chunk) for piece in self.task.pieces]
        if self.task.only is None:
            return pieces
        first, end = self.task.only
        found, begin = [], 0
        for piece in pieces:
            found.append(piece.slice(max(first - begin, 0), max(end - begin, 0)))
            begin += len(piece)
        return found

    def _transform(self, raws: list[bytes], wanted: list[int]) -> int:
        """Transform the wanted lines, or keep them in staging. Returns the bytes of those that wait."""
        if len(wanted) < min(_FEW_LINES, len(raws) / _FEW_AMONG):
            places = self.lines[wanted]
            of_lines = pl.Series("raw", [raws[index] for index in wanted], dtype=pl.Binary)
            self._write(schemas.WAITING, places.drop("index").with_columns(of_lines))
            return int(places["byte_length"].sum())
        LinesTransform(self.worker, self.task, self.lines, raws, wanted, self.contents).run()
        return 0

    def _write(self, kind: str, frame: pl.DataFrame) -> None:
        self.worker.plan.staged.write(kind, self.task.part, frame)

    def _report(
        self, counts: list[int], unchanged: pl.Series, of_content: pl.Series, waiting_bytes: int = 0
    ) -> ChunkReport:
        """Lines of each piece, and how many of them are unchanged: columns of the numbers of their files."""
        of_file, content_of_file = (dict(each.value_counts().iter_rows()) for each in (unchanged, of_content))
        files = tuple(
            FileLines(number, count, of_file.get(number, 0), content_of_file.get(number, 0))
            for number, count in zip([piece.file_number for piece in self.task.pieces], counts, strict=True)
        )
        return ChunkReport(files, waiting_bytes)

    def _new_lines(self, pieces: list[Lines], unchanged: pl.DataFrame) -> tuple[list[bytes], list[int]]:
        """Every line by its index, empty where it is unchanged; and the indexes of the others."""
        is_new = np.ones(len(self.lines), np.bool_)
        is_new[unchanged["index"].to_numpy()] = False
        raws: list[bytes] = []
        begin = 0
        for piece in pieces:
            here = is_new[begin : begin + len(piece)]
            begin += len(piece)
            if here.all():
                raws += piece.raws
                continue
            of_piece = [b""] * len(piece)
            places = np.flatnonzero(here)
            for place, raw in zip(places.tolist(), piece.raws_at(places), strict=True):
                of_piece[place] = raw
            raws += of_piece
        return raws, np.flatnonzero(is_new).tolist()

    def _hashed(self, pieces: list[Lines]) -> pl.DataFrame:
        """Columns index, file_number, line, byte_offset, byte_length, raw_hash_high, raw_hash_low."""
        numbers = np.array([piece.file_number for piece in self.task.pieces], np.int32)
        counts = [len(piece) for piece in pieces]
        hashes = np.concatenate([piece.hashes() for piece in pieces])
        return pl.DataFrame(
            {
                "index": np.arange(sum(counts), dtype=np.int32),
                "file_number": np.repeat(numbers, counts),
                "line": np.concatenate([piece.numbers for piece in pieces]),
                "byte_offset": np.concatenate([piece.offsets for piece in pieces]),
                "byte_length": np.concatenate([piece.lengths for piece in pieces]),
                "raw_hash_high": np.ascontiguousarray(hashes[:, 0]),
                "raw_hash_low": np.ascontiguousarray(hashes[:, 1]),
            }
        )

    def _unchanged(self) -> pl.DataFrame:
        """Lines that are known as they are: columns surrogate_id, index, file_number, line."""
        resources = self.worker.known.resources_of_lines(self.lines)
        return self.lines.select(resources, "index", "file_number", "line").drop_nulls("surrogate_id")

    def _unchanged_content(self, raws: list[bytes], others: list[int]) -> pl.DataFrame:
        """Those of the other lines whose content is known; the same columns."""
        found = self.contents.unchanged(others, [raws[index] for index in others])
        return found.join(self.lines, on="index").select("surrogate_id", "index", "file_number", "line")
