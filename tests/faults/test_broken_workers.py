"""A line that breaks the process that transforms it becomes a dead letter, and all others load.

The processes are real: they are killed, take memory until there is none, or raise. Only what makes a line do that is
the tests' own: a word in it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import polars as pl
import psutil
import pytest

from pipeline.core.errors import TransformError
from pipeline.fhir.ndjson import Chunk
from pipeline.load.processes import TransformRuns
from pipeline.load.tasks import ChunkPiece, ChunkReport, ChunkTask, LinesTask, WorkerPlan
from pipeline.load.worker import compare_chunk, the_worker, transform_lines
from pipeline.staging import schemas
from pipeline.staging.parts import StagedExport
from tests.transforming import index_of, plan_of, write_no_facts

_LIMIT = 2 * 1024**3
_LARGE = 8 * 1024**2  # as much input is transformed in processes


def _break(raw: bytes) -> None:
    if b"be-killed" in raw:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"take-memory" in raw:
        bytearray(_LIMIT + 1)
    if b"recurse" in raw:
        raise RecursionError
    if b"raise" in raw:
        raise RuntimeError("a value of the data")


def breaking_chunk(task: ChunkTask) -> ChunkReport:
    """`compare_chunk` of lines some of which break the process."""
    worker = the_worker()
    lines, raws = worker.lines(task)
    worker.plan.staged.write(schemas.OUTCOME, f"{task.part}-Left", lines.head(1))  # what an attempt leaves
    for raw in raws:
        _break(raw)
    worker.plan.staged.discard(f"{task.part}-Left")
    return compare_chunk(task)


def breaking_lines(task: LinesTask) -> None:
    for raw in the_worker().waiting(task)[1]:
        _break(raw)
    transform_lines(task)


def patient(name: str) -> bytes:
    return orjson.dumps({"resourceType": "Patient", "id": name, "birthDate": "1960", "gender": "female"}) + b"\n"


@pytest.fixture
def plan(tmp_path: Path) -> WorkerPlan:
    write_no_facts(tmp_path / "facts")
    return plan_of(index_of(tmp_path / "index"), tmp_path / "facts", StagedExport(tmp_path / "staged"), tmp_path)


def tasks_of(folder: Path, *files: list[str]) -> Iterator[ChunkTask]:
    for number, names in enumerate(files, start=1):
        file = folder / f"Patient.{number}.ndjson"
        file.write_bytes(b"".join(map(patient, names)))
        yield ChunkTask((ChunkPiece(file, number, Chunk(0, file.stat().st_size, 1)),), "Patient")


def outcomes(plan: WorkerPlan) -> dict[str, str]:
    frame = pl.concat([plan.staged.scan(schemas.OUTCOME), plan.staged.scan(schemas.OUTCOME).head(0)]).collect()
    found = dict(frame.select("resource_id", "outcome").rows())
    assert len(found) == frame.height, "a line has one outcome"
    return found


def letters(plan: WorkerPlan) -> dict[str, tuple[str, str]]:
    frame = plan.staged.scan(schemas.REJECTION).collect()
    return {row[0]: row[1:] for row in frame.select("resource_id", "code", "reason").rows()}


@pytest.mark.parametrize("total_bytes", [0, _LARGE], ids=["here", "in processes"])
def test_lines_that_break_their_process_are_dead_letters(plan: WorkerPlan, tmp_path: Path, total_bytes: int) -> None:
    breaking = ["raise-1", "recurse-2"] if total_bytes == 0 else ["be-killed-1", "take-memory-2"]
    names = [[f"p{number}" for number in range(5)], [*breaking, "q1"], ["r1"]]
    with TransformRuns(plan, 1, _LIMIT, total_bytes, tmp_path / "mark") as runs:
        runs.start()
        done = list(runs.run(breaking_chunk, tasks_of(tmp_path, *names)))
    assert sum(found.lines for _, report in done for found in report.files) == sum(map(len, names))
    expected = {name: "rejected" if name in breaking else "loaded" for part in names for name in part}
    assert outcomes(plan) == expected
    assert {name: code for name, (code, _) in letters(plan).items()} == dict.fromkeys(breaking, "worker_failed")
    assert not any("a value" in reason for _, reason in letters(plan).values())
    persons = plan.staged.scan("person").collect()
    assert persons.height == sum(outcome == "loaded" for outcome in expected.values())
    assert not (tmp_path / "mark").exists()


def test_new_lines_of_several_chunks_that_break_their_process(plan: WorkerPlan, tmp_path: Path) -> None:
    names = ["p0", "be-killed", "p1", "p2"]
    [chunk] = tasks_of(tmp_path, names)
    file = chunk.pieces[0].file
    lines = [patient(name) for name in names]
    offsets = [sum(map(len, lines[:place])) for place in range(len(lines))]
    places = {
        "file_number": [1] * 4,
        "line": [1, 2, 3, 4],
        "byte_offset": offsets,
        "byte_length": [len(line) - 1 for line in lines],
        "raw_hash_high": [0] * 4,
        "raw_hash_low": [0] * 4,
    }
    schema = {name: schemas.OUTCOME_SCHEMA[name] for name in places}
    raws = pl.Series("raw", [line.rstrip(b"\n") for line in lines], dtype=pl.Binary)
    plan.staged.write(schemas.WAITING, chunk.part, pl.DataFrame(places, schema=schema).with_columns(raws))
    assert file.exists()
    with TransformRuns(plan, 1, _LIMIT, _LARGE, tmp_path / "mark") as runs:
        runs.start()
        list(runs.run(breaking_lines, iter([LinesTask((chunk,), "Patient")])))
    assert outcomes(plan) == {name: "rejected" if name == "be-killed" else "loaded" for name in names}


def killed_here(plan: WorkerPlan, folder: Path) -> None:
    """A load of little input that is killed while it transforms."""
    with TransformRuns(plan, 1, _LIMIT, 0, folder / "mark") as runs:
        list(runs.run(breaking_chunk, tasks_of(folder, ["p1", "be-killed"])))


def test_a_load_that_was_killed_is_not_killed_by_the_same_line_again(plan: WorkerPlan, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=killed_here, args=(plan, tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "mark").exists()
    with TransformRuns(plan, 1, _LIMIT, 0, tmp_path / "mark") as runs:
        runs.start()
        list(runs.run(breaking_chunk, tasks_of(tmp_path, ["p1", "be-killed"])))
    assert outcomes(plan) == {"p1": "loaded", "be-killed": "rejected"}
    assert not (tmp_path / "mark").exists()


def test_many_lines_that_break_their_process_are_a_defect(
    plan: WorkerPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.load.processes._MOST_FAILURES", 2)
    with TransformRuns(plan, 1, _LIMIT, 0, tmp_path / "mark") as runs, pytest.raises(TransformError, match="defect"):
        list(runs.run(breaking_chunk, tasks_of(tmp_path, ["raise-1", "raise-2", "raise-3"])))


def _kill_the_first_child(killed: list[int], done: threading.Event) -> None:
    """Kill −9 the first process that is spawned, as soon as it is there."""
    while not done.wait(0.001) and not killed:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    killed.append(child.pid)
                    break


def test_a_worker_that_is_killed_while_it_starts(plan: WorkerPlan, tmp_path: Path) -> None:
    """What it is handed at its start fits the pipe, so that nobody waits for it; others are started."""
    killed: list[int] = []
    done = threading.Event()
    killing = threading.Thread(target=_kill_the_first_child, args=(killed, done))
    killing.start()
    try:
        with TransformRuns(plan, 1, _LIMIT, _LARGE, tmp_path / "mark") as runs:
            runs.start()
            list(runs.run(compare_chunk, tasks_of(tmp_path, ["p1", "p2"])))
    finally:
        done.set()
        killing.join()
    assert killed
    assert outcomes(plan) == {"p1": "loaded", "p2": "loaded"}
    assert not (plan.staged.folder / "plan.pickle").exists()
