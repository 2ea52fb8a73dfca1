"""The start of worker processes. A module of its own: a worker imports it, and of the pipeline what every worker does."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

from pipeline.load.worker import compare_chunk  # noqa: F401 - what a worker imports, so that start-up measures it

__all__ = ["start_up_seconds"]


def start_up_seconds(workers: int) -> float:
    """Seconds from asking for the worker processes until all of them have imported the pipeline."""
    started = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for ready in [pool.submit(_started) for _ in range(workers)]:
            ready.result()
        return time.perf_counter() - started


def _started() -> None:
    """Unpickling this function's name has imported this module, and with it the pipeline. Leaves work to the others."""
    time.sleep(0.01)
