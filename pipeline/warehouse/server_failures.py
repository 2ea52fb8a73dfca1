"""Errors of psycopg, SQLAlchemy and SQLite for which no statement of ours is to blame → what a user can do about them.

Only PostgreSQL's first line is ever shown: the others may quote rows. Connecting is `pipeline.warehouse.connection`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from pipeline.core.errors import WarehouseError, WarehouseUnavailable
from pipeline.warehouse.full_disk import MAKE_SPACE, tells_full_disk

__all__ = ["server_errors", "server_failure"]

_UNDONE = "What was not committed is undone."


@contextmanager
def server_errors() -> Iterator[None]:
    """Turns an error that the server, its disk, its rights or its tables are to blame for into a WarehouseError."""
    try:
        yield
    except Exception as error:
        failure = server_failure(error)
        if failure is None:
            raise
        raise failure from error


def server_failure(error: Exception) -> WarehouseError | None:
    """What to say of such an error; None for every other one, of a statement or its data too."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, sqlite3.OperationalError | sqlite3.DatabaseError):
        return _of_sqlite(cause)
    if not isinstance(cause, psycopg.Error):
        return None
    reason = (str(cause).strip() or type(cause).__name__).partition("\n")[0]
    return _of_rights_and_tables(cause, reason) or _of_server(cause, reason)


def _of_rights_and_tables(cause: psycopg.Error, reason: str) -> WarehouseError | None:
    if isinstance(cause, errors.InsufficientPrivilege):
        return WarehouseError(
            f"The database user may not do this: {reason}",
            f"{_UNDONE} Who administers the database can give the rights: `epic-omop db grant --help` lists them.",
        )
    if isinstance(cause, errors.ReadOnlySqlTransaction):
        return WarehouseError(
            f"The database takes no changes: {reason}",
            f"{_UNDONE} EPIC_OMOP_DATABASE_URL must name the primary server, not a standby, and"
            " default_transaction_read_only must be off for the database and its user.",
        )
    if isinstance(cause, errors.UndefinedTable | errors.InvalidSchemaName | errors.UndefinedColumn):
        return WarehouseError(
            f"The database does not have what this version of epic-omop works with: {reason}",
            "Make or upgrade its schemas with `epic-omop db init`, then run the same command again.",
        )
    return None


def _of_server(cause: psycopg.Error, reason: str) -> WarehouseError | None:
    is_internal = (cause.sqlstate or "").startswith("XX")
    if not is_internal and not isinstance(cause, psycopg.OperationalError):
        return None
    if isinstance(cause, errors.ConfigurationLimitExceeded):
        return WarehouseError(
            f"PostgreSQL refuses to go beyond a limit of its own: {reason}",
            f"{_UNDONE} Raise that limit for the database user, then run the same command again.",
        )
    if isinstance(cause, errors.DiskFull) or tells_full_disk(reason):
        if "shared memory" in reason:  # in containers, whose /dev/shm is small
            return WarehouseError(
                f"PostgreSQL's shared memory is full: {reason}",
                f"{_UNDONE} Give its container more (docker run --shm-size), then run the same command again.",
            )
        return WarehouseError(f"The disk of PostgreSQL is full: {reason}", f"{_UNDONE} {MAKE_SPACE}")
    return (WarehouseUnavailable if _passes(cause) else WarehouseError)(
        f"PostgreSQL failed in the middle of the work: {reason}",
        f"{_UNDONE} See to the server (its log says why; `epic-omop db status` says where that of an embedded one is),"
        " then run the same command again.",
    )


#: What begins the codes of failures that pass: lost connections, transactions that met another one, a server that starts or
#: stops, locks that others hold, too many connections. https://www.postgresql.org/docs/current/errcodes-appendix.html
_PASSING = ("08", "40", "57P01", "57P02", "57P03", "55P03", "53300")


def _passes(cause: psycopg.Error) -> bool:
    """libpq gives no code where the connection itself broke."""
    return isinstance(cause, psycopg.OperationalError) and (
        cause.sqlstate is None or cause.sqlstate.startswith(_PASSING)
    )


def _of_sqlite(cause: sqlite3.Error) -> WarehouseError:
    """Dagster's own storage, where no other is configured in dagster.yaml."""
    return WarehouseError(
        f"Dagster's storage in the home cannot be used: {cause}",
        "The files below dagster/ in EPIC_OMOP_HOME must belong to the user who runs this, on a disk with space that"
        " takes changes.",
    )
