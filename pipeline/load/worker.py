"""What a worker process does: it opens landed files, compares their lines, transforms what is new, and writes parts.

The seam where another executor plugs in: `start_worker` once a process, then `compare_chunk` and `transform_lines`, in any
process, for tasks that are values. No database and no HTTP is imported for it. What is in the closure of its imports
decides rows (`pipeline.load.fingerprints`); the processes themselves are `pipeline.load.processes`.

Lines that are known by their bytes or their content are unchanged, and nothing more is done about them. A chunk of which
much is new goes through the transform at once. Few lines are kept with their positions: they are put together with those
of other chunks, because what polars asks for a frame does not grow with its rows, and a night has few in each chunk.
"""

from __future__ import annotations

import gc
import pickle
import re
import resource
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl

from pipeline.core.errors import LandingError
from pipeline.core.line_codes import RejectionCode
from pipeline.fhir.ndjson import Lines
from pipeline.landing.chunks import read_lines
from pipeline.landing.reading import read_line
from pipeline.load.comparison import Compared, compare_lines, positions_of
from pipeline.load.tasks import ChunkReport, ChunkTask, LinesTask, WorkerPlan
from pipeline.staging import schemas
from pipeline.staging.facts import Facts
from pipeline.staging.known_lines import KnownLines
from pipeline.staging.schemas import FileLines
from pipeline.transform.content import Contents
from pipeline.transform.lines import LineBatch, LinesTransform
from pipeline.transform.plan import Worker
from pipeline.transform.ports import Ports

__all__ = [
    "LineWorker",
    "compare_chunk",
    "count_lines",
    "is_ready",
    "reject_line",
    "start_limited_worker",
    "start_worker",
    "the_worker",
    "transform_lines",
]

#: A chunk with fewer new lines, and with fewer than one in so many, leaves them to be put together with others'.
_FEW_LINES = 4_000
_FEW_AMONG = 4

#: The id of a resource in its bytes.
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,128})"')


class LandedBinaries:
    """Lines of Binaries where they landed (`pipeline.transform.ports.Binaries`)."""

    def __init__(self, landing: Path) -> None:
        self._landing = landing

    def read(self, places: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Lines by 'path below the site's landing folder|offset|length'.

        One that is not there any more is left out: it was looked for before, and is an issue
        (`pipeline.load.landed_lines`).
        """
        for place in places:
            path, offset, length = place.rsplit("|", 2)
            try:
                raw = read_line(self._landing / path, int(offset), int(length))
            except LandingError:
                continue
            yield place, raw


class LineWorker:
    """One process's files, and the transform that works on what they hold. Not thread-safe."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        self.known = KnownLines(plan.known)
        ports = Ports(self.known, Facts(plan.facts), LandedBinaries(plan.landing), plan.staged)
        self.transform = Worker(plan.transform, ports)

    def compare(self, task: ChunkTask) -> ChunkReport:
        """Compare one chunk, and transform what is new unless that is little."""
        contents = Contents(self.transform)
        numbers = [piece.file_number for piece in task.pieces]
        compared = compare_lines(self.known, contents, numbers, self.pieces(task))
        if compared is None:
            return ChunkReport(tuple(FileLines(number, 0, 0, 0) for number in numbers))
        waiting_bytes = self._transform_or_keep(task, compared, contents)
        self.plan.staged.write(
            schemas.UNCHANGED, task.part, compared.unchanged.select("surrogate_id", "file_number", "line")
        )
        return ChunkReport(_counts_by_file(numbers, compared), waiting_bytes)

    def _transform_or_keep(self, task: ChunkTask, compared: Compared, contents: Contents) -> int:
        """Transform the new lines, or keep them in staging. Returns the bytes of those that wait."""
        raws, new, positions = compared.raws, compared.new, compared.positions
        if not raws:
            return 0
        if len(new) < min(_FEW_LINES, len(raws) / _FEW_AMONG):
            kept = positions[new]
            of_lines = pl.Series("raw", [raws[index] for index in new], dtype=pl.Binary)
            self.plan.staged.write(schemas.WAITING, task.part, kept.drop("index").with_columns(of_lines))
            return int(kept["byte_length"].sum())
        self._transform(task, raws, positions, new, contents)
        return 0

    def transform_waiting(self, task: LinesTask) -> None:
        """Transform the lines that chunks left. Raises LandingError."""
        positions, raws = self.waiting(task)
        self._transform(task, raws, positions, list(range(len(raws))), Contents(self.transform))

    def _transform(
        self,
        task: ChunkTask | LinesTask,
        raws: list[bytes],
        positions: pl.DataFrame,
        selected: list[int],
        contents: Contents,
    ) -> None:
        batch = LineBatch(task.resource_type, task.part, raws, positions, selected, self._names(task.files))
        LinesTransform(self.transform, batch, contents).run()
        self.plan.staged.write(schemas.CODE_SET, task.part, self.transform.note_code_sets())

    def _names(self, files: Mapping[int, Path]) -> dict[int, str]:
        root = self.plan.landing
        return {number: file.relative_to(root).as_posix() for number, file in files.items()}

    def pieces(self, task: ChunkTask) -> list[Lines]:
        """The lines of a chunk, piece by piece, read from landing."""
        pieces = [read_lines(piece.file, piece.chunk) for piece in task.pieces]
        if task.only is None:
            return pieces
        first, end = task.only
        found, begin = [], 0
        for piece in pieces:
            found.append(piece.slice(max(first - begin, 0), max(end - begin, 0)))
            begin += len(piece)
        return found

    def waiting(self, task: LinesTask) -> tuple[pl.DataFrame, list[bytes]]:
        """The lines that chunks left: their positions, numbered, and what they hold."""
        left = pl.concat([self.plan.staged.read(schemas.WAITING, chunk.part) for chunk in task.chunks])
        if task.only is not None:
            left = left.slice(task.only[0], task.only[1] - task.only[0])
        positions = left.drop("raw").with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("index"))
        return positions, left["raw"].to_list()

    def lines(self, task: ChunkTask | LinesTask) -> tuple[pl.DataFrame, list[bytes]]:
        """All lines of a task: their positions, and what they hold."""
        if isinstance(task, LinesTask):
            return self.waiting(task)
        pieces = self.pieces(task)
        numbers = [piece.file_number for piece in task.pieces]
        return positions_of(numbers, pieces), [raw for piece in pieces for raw in piece.raws]


def _counts_by_file(numbers: list[int], compared: Compared) -> tuple[FileLines, ...]:
    """Lines of each piece, and how many of its file are unchanged."""
    unchanged, by_content = (
        dict(frame["file_number"].value_counts().iter_rows())
        for frame in (compared.unchanged, compared.unchanged_by_content)
    )
    return tuple(
        FileLines(number, count, unchanged.get(number, 0), by_content.get(number, 0))
        for number, count in zip(numbers, compared.counts, strict=True)
    )


# --- in the process that `start_worker` prepared ------------------------------------------------------------------------

_worker: LineWorker | None = None


def start_worker(plan: WorkerPlan) -> None:
    """Prepare this process for the functions below."""
    global _worker  # noqa: PLW0603 - one worker a process is what a process pool's initialiser is for
    _worker = LineWorker(plan)


def start_limited_worker(plan_file: Path, secret: bytes, limit: int) -> None:
    """Initialiser of a worker process, which may have `limit` bytes of data. `plan_file`: a pickled `WorkerPlan` without
    the secret under which identifiers are compared."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    plan: WorkerPlan = pickle.loads(plan_file.read_bytes())  # noqa: S301 - our own, in our own folder
    start_worker(replace(plan, transform=replace(plan.transform, identifier_secret=secret)))


def is_ready() -> bool:
    """True in a process that `start_worker` prepared: the first answer says that the processes have started."""
    return _worker is not None


def the_worker() -> LineWorker:
    """The one of this process."""
    assert _worker is not None, "start_worker must run first"
    return _worker


def compare_chunk(task: ChunkTask) -> ChunkReport:
    """Compare one chunk, and transform what is new unless that is little: then it waits for `transform_lines`."""
    worker = the_worker()
    worker.transform.bound_memory()
    with _without_collection():
        return worker.compare(task)


def transform_lines(task: LinesTask) -> None:
    """Transform the lines that chunks left. Raises LandingError."""
    worker = the_worker()
    worker.transform.bound_memory()
    with _without_collection():
        worker.transform_waiting(task)


def count_lines(task: ChunkTask | LinesTask) -> int:
    """The lines of a task that is to be cut: those that it transforms, or compares."""
    if task.only is not None:
        return task.only[1] - task.only[0]
    if isinstance(task, LinesTask):
        return len(the_worker().waiting(task)[1])
    return sum(map(len, the_worker().pieces(task)))


def reject_line(task: ChunkTask | LinesTask, reason: str) -> ChunkReport:
    """The only line of a task becomes a dead letter, and is not looked at but for its type and id.

    Its id is looked for in its bytes: to read it as JSON may be what broke a process.
    """
    worker = the_worker()
    positions, [raw] = worker.lines(task)
    found = _ID.search(raw)
    resource_id = found[1].decode(errors="replace") if found else None
    surrogate_id = worker.transform.keys.of(task.resource_type, resource_id) if resource_id else None
    rejected = positions.with_columns(
        pl.lit(task.resource_type).alias("resource_type"),
        pl.lit(resource_id, dtype=pl.String).alias("resource_id"),
        pl.lit(surrogate_id, dtype=pl.Int64).alias("surrogate_id"),
        pl.lit("rejected").alias("outcome"),
        pl.lit(reason).alias("reason"),
        pl.lit(None, dtype=pl.Int64).alias("content_hash"),
        pl.lit("transform").alias("stage"),
        pl.lit(RejectionCode.WORKER_FAILED).alias("code"),
        pl.lit(None, dtype=pl.String).alias("path"),
        pl.lit(None, dtype=pl.Int64).alias("cause"),
    )
    staged = worker.plan.staged
    staged.write(schemas.OUTCOME, task.part, rejected.select(*schemas.OUTCOME_SCHEMA))
    staged.write(schemas.REJECTION, task.part, rejected.select(*schemas.REJECTION_SCHEMA))
    return ChunkReport(tuple(FileLines(number, 1, 0, 0) for number in positions["file_number"]))


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
