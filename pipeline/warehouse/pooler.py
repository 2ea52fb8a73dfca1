"""Whether a pooler stands between us and PostgreSQL that hands out another server process for each transaction.

Session locks, settings and temporary tables then belong to whoever comes next: loads would run in parallel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

import psycopg

from pipeline.core.errors import WarehouseError

__all__ = ["refuse_shared_processes"]

#: A pooler that gives session after session its own process answers at once; one that has none left makes it wait.
_PATIENCE_SECONDS = 10.0
_TURNS = 5


def refuse_shared_processes(
    connection: psycopg.Connection, process_id: int, connect: Callable[[], psycopg.Connection]
) -> None:
    """Raise WarehouseError where a second connection can be served by the process of the first, which is still open.

    `process_id`: what the server reports of itself. Without a pooler it is what the connection received when it began, and
    nothing more is asked.
    """
    if connection.info.backend_pid == process_id:
        return
    message = _problem(connect)
    if message:
        raise WarehouseError(
            message,
            "Set pool_mode = session for this database in the pooler, or let EPIC_OMOP_DATABASE_URL name the server itself.",
        )


@cache
def _problem(connect: Callable[[], psycopg.Connection]) -> str | None:
    """What is wrong with the pooler; asked once a process for each address."""
    seen: list[set[int]] = []
    asking = threading.Thread(target=_ask_side_by_side, args=(connect, seen), daemon=True)
    asking.start()
    asking.join(_PATIENCE_SECONDS)
    if not seen:
        return "The pooler before PostgreSQL has no two connections for us: its pool is too small."
    first, second = seen
    if first & second or len(first) > 1 or len(second) > 1:
        return "A pooler such as PgBouncer in transaction mode stands before PostgreSQL: locks and temporary tables get lost."
    return None


def _ask_side_by_side(connect: Callable[[], psycopg.Connection], seen: list[set[int]]) -> None:
    """Adds the server processes that each of two open connections was served by; nothing where one is refused."""
    try:
        with connect() as one, connect() as other:
            one.autocommit = other.autocommit = True
            found: tuple[set[int], set[int]] = (set(), set())
            for _ in range(_TURNS):
                for connection, processes in zip((one, other), found, strict=True):
                    row = connection.execute("SELECT pg_backend_pid()").fetchone()
                    processes.add(row[0] if row else 0)
            seen.extend(found)
    except (psycopg.Error, WarehouseError):
        return
