"""Peak memory: proportional set size (PSS) of our processes, and of PostgreSQL's apart, sampled by a thread.

PSS counts a page that n processes share as 1/n in each, so that a sum over processes is what the machine gives.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import psutil

__all__ = ["MemoryPeak", "PeakMemory", "postgres_tree"]

_INTERVAL_SECONDS = 0.1


@dataclass
class MemoryPeak:
    """Bytes. Where the system tells no PSS (not Linux, or no right to see it) the resident set is taken."""

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
            self._sample()
            if self._end.wait(_INTERVAL_SECONDS):
                return

    def _sample(self) -> None:
        servers = {process.pid for process in postgres_tree(self._server)}
        own = [process for process in _tree(psutil.Process()) if process.pid not in servers]
        self.peak.ours = max(self.peak.ours, _sum(own))
        self.peak.postgres = max(self.peak.postgres, _sum(postgres_tree(self._server)))
        self.peak.samples += 1


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
