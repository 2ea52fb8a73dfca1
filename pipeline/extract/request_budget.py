"""`etl.request_count`: requests of a site in each hour, over all processes, against its budget.

A process sets requests apart in blocks and gives back what it did not use, so that counting costs a statement a block
and no number of processes goes beyond the budget. After a crash a block counts as used until the hour has passed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType

import psycopg

from pipeline.core.clock import Clock
from pipeline.core.errors import RequestBudgetSpent, WarehouseError
from pipeline.core.settings import SiteSettings
from pipeline.warehouse.server_failures import server_errors

__all__ = ["WarehouseRequestBudget", "beginning_of_hour", "requests_in_hour"]

_log = logging.getLogger(__name__)

Connect = Callable[[], AbstractContextManager[psycopg.Connection]]

_BLOCK = 50
#: From this share of the budget on, what is left is spread over the rest of the hour, with pauses of at most so long.
_SLOW_FROM = 0.8
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass
class _Lease:
    """Requests set apart for this process in an hour; `total` counts those of all processes."""

    hour: datetime
    left: int = 0
    total: int = 0


def beginning_of_hour(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


@contextmanager
def _of_this_version() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.UndefinedTable:
        raise WarehouseError(
            "The warehouse has not the tables of this version.", "Add them with `epic-omop db init`."
        ) from None


def requests_in_hour(connection: psycopg.Connection, site: str, instant: datetime) -> int:
    """Requests to a site in the hour of that instant, those set apart included."""
    with _of_this_version():
        row = connection.execute(
            "SELECT requests FROM request_count WHERE site = %s AND hour = %s", [site, beginning_of_hour(instant)]
        ).fetchone()
    return int(row[0]) if row else 0


class WarehouseRequestBudget:
    """The requests of one session. A context manager: gives back at its end what it did not use. Thread-safe."""

    def __init__(self, connect: Connect, site: SiteSettings, clock: Clock) -> None:
        self._connect = connect
        self._site = site.name
        self._budget = site.request_budget_per_hour
        self._clock = clock
        self._lock = threading.Lock()
        self._lease: _Lease | None = None

    def __enter__(self) -> WarehouseRequestBudget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with self._lock:
                self._give_back()
        except (psycopg.Error, WarehouseError) as failure:  # what is not given back counts as used until the hour ends
            _log.warning("Requests set apart could not be given back (%s).", type(failure).__name__)

    def take(self, patience_seconds: float = float("inf")) -> None:
        """Count a request that is about to be sent.

        A nearly spent budget makes it wait, one request after the other, also those of parallel downloads. Raises
        RequestBudgetSpent when nothing is left in this hour, or when the wait is longer than the caller's patience.
        """
        with self._lock:  # held while waiting: the pace is that of the process, not of each thread
            lease = self._lease_at(self._clock.now())
            pause = self._pause(lease)
            if pause > patience_seconds:
                raise self._error(self._clock.now() + timedelta(seconds=pause), "nearly ")
            lease.left -= 1
            if pause:
                self._clock.sleep(pause)

    def _lease_at(self, now: datetime) -> _Lease:
        hour = beginning_of_hour(now)
        if self._lease is None or self._lease.hour != hour or self._lease.left <= 0:
            self._give_back()
            self._lease = self._leased(hour)
        if self._lease.left <= 0:
            raise self._error(hour + timedelta(hours=1))
        return self._lease

    def _leased(self, hour: datetime) -> _Lease:
        with server_errors(), _of_this_version(), self._connect() as connection:
            key = [self._site, hour]
            connection.execute(
                "INSERT INTO request_count (site, hour, requests) VALUES (%s, %s, 0) ON CONFLICT DO NOTHING", key
            )
            row = connection.execute(
                "SELECT requests FROM request_count WHERE site = %s AND hour = %s FOR UPDATE", key
            ).fetchone()
            used = int(row[0]) if row else 0
            granted = self._block(used)
            if granted:
                statement = "UPDATE request_count SET requests = requests + %s WHERE site = %s AND hour = %s"
                connection.execute(statement, [granted, *key])
            connection.commit()
        return _Lease(hour, granted, used + granted)

    def _block(self, used: int) -> int:
        """A block is a small part of the budget; near its end, one request, so that other processes have their share."""
        if self._budget is None:
            return _BLOCK
        left = self._budget - used
        if used >= _SLOW_FROM * self._budget:
            return max(0, min(1, left))
        return max(0, min(_BLOCK, self._budget // 50 or 1, left))

    def _pause(self, lease: _Lease) -> float:
        used = lease.total - lease.left
        if self._budget is None or used < _SLOW_FROM * self._budget:
            return 0.0
        seconds_left = (lease.hour + timedelta(hours=1) - self._clock.now()).total_seconds()
        return min(seconds_left / max(1, self._budget - used), _LONGEST_PAUSE_SECONDS)

    def _give_back(self) -> None:
        lease, self._lease = self._lease, None
        if lease is None or lease.left <= 0:
            return
        with self._connect() as connection:
            connection.execute(
                "UPDATE request_count SET requests = requests - %s WHERE site = %s AND hour = %s",
                [lease.left, self._site, lease.hour],
            )
            connection.commit()

    def _error(self, next_try: datetime, how: str = "") -> RequestBudgetSpent:
        return RequestBudgetSpent(
            f"The budget of {self._budget} requests an hour at site {self._site} is {how}spent.",
            f"What is done stays; a run from {next_try:%Y-%m-%d %H:%M} UTC on continues from there.",
            next_try=next_try,
        )
