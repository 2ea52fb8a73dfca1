"""A limit of requests per second, kept by all workers of a site together. Time is injected."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

from pipeline.core.clock import Clock

__all__ = ["RateLimiter"]


class RateLimiter:
    """Spreads requests evenly: `wait` returns when the next one may be sent. Thread-safe."""

    def __init__(self, clock: Clock, per_second: float) -> None:
        self._clock = clock
        self._interval = timedelta(seconds=1 / per_second)
        self._lock = threading.Lock()
        self._next: datetime | None = None

    def wait(self) -> None:
        """Take the next place in the row and sleep until it has come. Unused time is not saved up."""
        with self._lock:
            now = self._clock.now()
            mine = max(now, self._next) if self._next else now
            self._next = mine + self._interval
        pause = (mine - now).total_seconds()
        if pause > 0:
            self._clock.sleep(pause)
