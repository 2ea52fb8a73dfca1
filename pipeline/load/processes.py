"""Where chunks are transformed: in this process, in a pool, or alone in a process with a memory limit.

A resource may break the process that transforms it: by memory that nobody has, by a crash of a library, by a defect. No
night is lost for it. Its chunk runs again in halves, in a process of its own, until the line is alone: that line becomes
a dead letter (`worker_failed`), and the others load. What a process does is `pipeline.load.worker`.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import psutil

from pipeline.core.errors import EpicOmopError, TransformError
from pipeline.load.tasks import ChunkTask, LinesTask, WorkerPlan
from pipeline.load.worker import count_lines, is_ready, reject_line, start_limited_worker, start_worker
from pipeline.staging import schemas
from pipeline.staging.parts import staging_errors
from pipeline.warehouse.runtime import LoadSizes

__all__ = ["TransformRuns", "memory_limit"]

#: Chunks that are under way: memory does not grow with their number.
_AHEAD = 8
#: More lines of an export that break their process are no odd lines any more, but a defect.
_MOST_FAILURES = 25
#: So often processes that end while they start are started: the system may have been short of memory just then.
_STARTS = 3
_LEAST_MEMORY = 2 * 1024**3

#: Environment of the worker processes.
_WORKER_ENVIRONMENT = {
    # As many processes as cores, one thread each.
    "POLARS_MAX_THREADS": "1",
    # Polars' allocator would give memory back between two chunks and ask for it again: 0.8 page faults a line.
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1",
}

Task = TypeVar("Task", ChunkTask, LinesTask)
Result = TypeVar("Result")


def memory_limit(setting_mb: int | None, workers: int) -> int:
    """Bytes of data that a worker process may have: the setting, else its share of half the machine, at least 2 GiB."""
    if setting_mb is not None:
        return setting_mb * 1024**2
    return max(_LEAST_MEMORY, psutil.virtual_memory().total // 2 // workers)


class TransformRuns:
    """The processes of one load. A context manager: they end with it.

    `mark`: a file that is there while lines are transformed in this process. Where it is found, the last attempt was
    killed in the middle, perhaps by a line that takes all memory: this one transforms in processes of their own.
    """

    def __init__(
        self,
        plan: WorkerPlan,
        workers: int,
        limit: int,
        total_bytes: int,
        mark: Path,
        in_process: int = LoadSizes.in_process,
    ) -> None:
        self._plan = plan
        self._workers = workers
        self._limit = limit
        self._mark = mark
        self._in_process = total_bytes < in_process and not mark.exists()
        self._pool: ProcessPoolExecutor | None = None
        self._single: ProcessPoolExecutor | None = None
        self._failures = 0
        self._open = ExitStack()

    def __enter__(self) -> TransformRuns:
        if self._in_process:
            self._mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._mark.touch(mode=0o600)
            start_worker(self._plan)
        else:
            self._open.enter_context(_worker_environment())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for pool in (self._pool, self._single):
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        self._open.close()
        self._plan_file.unlink(missing_ok=True)
        if kind is None or self._in_process:
            self._mark.unlink(missing_ok=True)

    def start(self) -> float:
        """Start the processes, if any; the seconds until the first is ready. Raises TransformError."""
        if self._in_process:
            return 0.0
        started = time.perf_counter()
        self._pool = self._start_pool(self._workers)
        return time.perf_counter() - started

    def run(self, transform: Callable[[Task], Result], tasks: Iterator[Task]) -> Iterator[tuple[Task, Result]]:
        """Results in the order of the tasks; of a task that broke its process, those of its parts.

        Raises TransformError where many lines break their process, and what the tasks raise of EpicOmopError.
        """
        if self._in_process:
            for task in tasks:
                yield from self._run_here(transform, task)
            return
        ahead: deque[tuple[Task, Future[Result] | None]] = deque()
        while True:
            for task in islice(tasks, _AHEAD - len(ahead)):
                ahead.append((task, self._submit(transform, task)))
            if not ahead:
                return
            task, future = ahead.popleft()
            try:
                result = future.result() if future is not None else None
            except EpicOmopError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a line does to its process, the others load
                if isinstance(error, BrokenProcessPool):
                    self._forget_pool()
                yield from self._run_in_parts(transform, task, _reason(error))
                continue
            if future is None:
                yield from self._run_in_parts(transform, task, None)
            else:
                yield task, result  # type: ignore[misc]  # a future has given it

    # --- in this process --------------------------------------------------------------------------------------------

    def _run_here(self, transform: Callable[[Task], Result], task: Task) -> Iterator[tuple[Task, Result]]:
        try:
            result = transform(task)
        except EpicOmopError:
            raise
        except Exception as error:  # noqa: BLE001 - as in a pool
            start_worker(self._plan)  # what it holds may be half done
            yield from self._run_in_parts(transform, task, _reason(error))
            return
        yield task, result

    # --- in a pool --------------------------------------------------------------------------------------------------

    def _submit(self, transform: Callable[[Task], Result], task: Task) -> Future[Result] | None:
        """None: the pool broke just now; the task runs alone."""
        try:
            if self._pool is None:
                self._pool = self._start_pool(self._workers)
            return self._pool.submit(transform, task)
        except BrokenProcessPool:
            self._forget_pool()
            return None

    def _forget_pool(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _start_pool(self, workers: int) -> ProcessPoolExecutor:
        """A pool of spawned processes: fork with polars hangs."""
        self._write_plan()
        with _worker_environment():
            for _ in range(_STARTS):
                pool = ProcessPoolExecutor(
                    workers,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=start_limited_worker,
                    initargs=(self._plan_file, self._plan.transform.identifier_secret, self._limit),
                )
                try:
                    pool.submit(is_ready).result()
                except BrokenProcessPool:
                    pool.shutdown(wait=False, cancel_futures=True)
                else:
                    return pool
        raise TransformError(
            f"The worker processes ended {_STARTS} times while they started, with {self._limit // 1024**2:,} MB of memory"
            " each.",
            "Give them more by EPIC_OMOP_WORKER_MEMORY_MB, or use fewer by EPIC_OMOP_WORKERS.",
        )

    @property
    def _plan_file(self) -> Path:
        return self._plan.staged.folder / "plan.pickle"

    def _write_plan(self) -> None:
        """A process is given the plan as a file. What is handed over at its start goes through a pipe that holds 64 KiB:
        were it killed before it has read all, this process would wait for ever. The secret is never written."""
        if not self._plan_file.exists():
            with staging_errors(self._plan_file.parent):
                self._plan_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                without_secret = replace(self._plan.transform, identifier_secret=b"")
                self._plan_file.write_bytes(pickle.dumps(replace(self._plan, transform=without_secret)))

    # --- alone ------------------------------------------------------------------------------------------------------

    def _run_in_parts(
        self, transform: Callable[[Task], Result], task: Task, reason: str | None
    ) -> Iterator[tuple[Task, Result]]:
        """A task that broke its process, or was there when another did: alone, then in halves down to one line."""
        waiting: list[Task] = [task]
        while waiting:
            task = waiting.pop()
            self._discard(task)
            result, reason = self._run_alone(transform, task)
            if reason is None:
                yield task, result
                continue
            self._discard(task)
            lines, problem = self._run_alone(count_lines, task)
            if problem is not None:
                raise TransformError(f"The lines of a chunk cannot be counted: {problem}.", _REPORT)
            first = task.only[0] if task.only else 0
            if lines > 1:
                middle = first + lines // 2
                halves = [(first, middle), (middle, first + lines)]
                waiting += [replace(task, only=only) for only in reversed(halves)]
                continue
            yield self._reject(replace(task, only=(first, first + 1)), reason)

    def _reject(self, task: Task, reason: str) -> tuple[Task, Any]:
        self._failures += 1
        if self._failures > _MOST_FAILURES:
            raise TransformError(
                f"More than {_MOST_FAILURES} lines of export {self._plan.staged.folder.name} broke their worker process"
                f" ({reason}).",
                _REPORT,
            )
        report, problem = self._run_alone(reject_line, task, reason)
        if problem is not None:
            raise TransformError(f"A line that breaks its process cannot be set aside: {problem}.", _REPORT)
        return task, report

    def _run_alone(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
        """Result and, where the process broke, why. Raises EpicOmopError."""
        if self._single is None:
            self._single = self._start_pool(1)
        try:
            return self._single.submit(function, *arguments).result(), None
        except EpicOmopError:
            raise
        except Exception as error:  # noqa: BLE001 - see `run`
            self._single.shutdown(wait=False, cancel_futures=True)
            self._single = None
            return None, _reason(error)

    def _discard(self, task: ChunkTask | LinesTask) -> None:
        """What a broken attempt has written. A LinesTask has the name of a chunk, whose own parts stay."""
        kept = (schemas.UNCHANGED, schemas.WAITING) if isinstance(task, LinesTask) else ()
        self._plan.staged.discard(task.part, kept)


_REPORT = "Nothing was published. This is a defect of epic-omop: please report it with this sentence."


def _reason(error: BaseException) -> str:
    """What a line did to its process, without a value of the data."""
    if isinstance(error, BrokenProcessPool):
        return "it ended its worker process, by the memory that it takes or by a crash"
    if isinstance(error, MemoryError):
        return "it takes more memory than a worker process may have"
    return f"the transform stage fails on it ({type(error).__name__})"


@contextmanager
def _worker_environment() -> Iterator[None]:
    """What spawned processes inherit while this is open."""
    before = {name: os.environ.get(name) for name in _WORKER_ENVIRONMENT}
    os.environ.update(_WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
