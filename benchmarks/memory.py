"""Peak memory and CPU seconds of our processes, and of PostgreSQL's apart.

Memory is the proportional set size (PSS), sampled by a thread.

PSS counts a page that n processes share as 1/n in each, so that a sum over processes is what the machine gives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import psutil

__all__ = ["CpuSeconds", "MemoryPeak", "PeakMemory", "postgres_tree"]

_INTERVAL_SECONDS = 0.1

#: To sum up the pages of gigabytes of shared buffers takes a while: sampling takes at most a fiftieth of the time.
_REST = 50


@dataclass
class MemoryPeak:
    """Bytes. Where the system gives no PSS (not Linux, or no right to see it) the resident set is taken."""

    ours: int = 0
    postgres: int = 0
    samples: int = 0


class PeakMemory:
    """A context: samples while it is open. `server` is the postmaster's process id, None for a server elsewhere."""

    def __init__(self, server: int | None) -> None:
        self.peak = MemoryPeak()
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self.peak

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            started = time.perf_counter()
            self._sample()
            if self._end.wait(max(_INTERVAL_SECONDS, _REST * (time.perf_counter() - started))):
                return

    def _sample(self) -> None:
        servers = {process.pid for process in postgres_tree(self._server)}
        own = [process for process in _tree(psutil.Process()) if process.pid not in servers]
        self.peak.ours = max(self.peak.ours, _sum(own))
        self.peak.postgres = max(self.peak.postgres, _sum(postgres_tree(self._server)))
        self.peak.samples += 1


class CpuSeconds:
    """A context: user and system seconds, of processes that ended meanwhile as well, while it is open."""

    def __init__(self, server: int | None) -> None:
        self.ours = self.postgres = 0.0
        self._server = server

    def __enter__(self) -> CpuSeconds:
        self._before = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.ours, self.postgres = (after - before for after, before in zip(self._now(), self._before, strict=True))

    def _now(self) -> tuple[float, float]:
        servers = postgres_tree(self._server)
        own = psutil.Process().cpu_times()  # with those of children that have ended, the server's not among them
        return sum(own[:4]), sum(map(_cpu, servers))


def _cpu(process: psutil.Process) -> float:
    with _gone():
        return float(sum(process.cpu_times()[:4]))
    return 0.0


def postgres_tree(server: int | None) -> list[psutil.Process]:
    """The postmaster and its backends; empty for None or a server that has gone."""
    if server is None:
        return []
    with _gone():
        return _tree(psutil.Process(server))
    return []


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _sum(processes: Iterable[psutil.Process]) -> int:
    return sum(_memory(process) for process in processes)


def _memory(process: psutil.Process) -> int:
    with _gone():
        try:
            return int(process.memory_full_info().pss)
        except (AttributeError, psutil.AccessDenied):
            return int(process.memory_info().rss)
    return 0


@contextmanager
def _gone() -> Iterator[None]:
    """A process may end between two looks at it."""
    try:
        yield
    except (psutil.NoSuchProcess, psutil.ZombieProcess, ProcessLookupError):
        return
