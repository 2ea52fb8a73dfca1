"""Connections to the warehouse: the embedded server, or the PostgreSQL server that EPIC_OMOP_DATABASE_URL names.

Every connection of the project is made here, so that all of them have the same session settings and the same clear
errors. No error shows a password, nor any part of a URL that may hold one by mistake.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pipeline.core.errors import ConfigurationError, WarehouseError, WarehouseUnavailable
from pipeline.warehouse.embedded.server import EmbeddedServer
from pipeline.warehouse.full_disk import MAKE_SPACE, tells_full_disk
from pipeline.warehouse.pooler import refuse_shared_processes

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["OLDEST_SERVER", "connect", "database_url", "sqlalchemy_engine"]

#: The oldest major version that is tested and still maintained by the PostgreSQL project.
OLDEST_SERVER = 14

_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_CONNECT_TIMEOUT_SECONDS = 20
_EXAMPLE = "It looks like postgresql://user:password@host:5432/database"


def database_url(database_url_setting: str | None, home: Path) -> str:
    """The URL of a warehouse that answers: scheme `postgresql`, for `connect`, `sqlalchemy_engine` and psql.

    Without a setting the embedded server of `home` is started if need be. A given URL is checked by connecting.
    Raises ConfigurationError for a malformed URL, WarehouseError if the server cannot be reached or is too old.
    """
    if database_url_setting is None:
        return EmbeddedServer(home).ensure_running()
    url = _check_url(database_url_setting)
    connect(url).close()
    return url


def connect(url: str) -> psycopg.Connection:
    """A connection with `application_name` epic-omop and the session time zone UTC, outside a transaction.

    Raises WarehouseError if the server cannot be reached, refuses the login, is older than `OLDEST_SERVER`, or stands
    behind a pooler that gives each transaction another server process.
    """
    connection = _open(url)
    try:
        _refuse_old_server(connection, _parsed(url))
        row = connection.execute("SELECT pg_backend_pid(), set_config('TimeZone', 'UTC', false)").fetchone()
        refuse_shared_processes(connection, row[0] if row else 0, _OpenedAgain(url))
        connection.autocommit = False
    except BaseException:
        connection.close()
        raise
    return connection


def _open(url: str) -> psycopg.Connection:
    given = _parsed(url)
    try:
        return psycopg.connect(
            url,
            autocommit=True,
            application_name=given.get("application_name") or "epic-omop",
            connect_timeout=given.get("connect_timeout") or _CONNECT_TIMEOUT_SECONDS,
        )
    except psycopg.Error as error:
        raise _unreachable(given, error) from None


@dataclass(frozen=True)
class _OpenedAgain:
    """A further connection to the same address; equal for equal addresses."""

    url: str = field(repr=False)

    def __call__(self) -> psycopg.Connection:
        return _open(self.url)


def sqlalchemy_engine(url: str) -> Engine:
    """An engine whose connections come from `connect` and so raise its errors."""
    from sqlalchemy import create_engine, make_url  # which commands that only look into the warehouse do not need

    _parsed(url)
    named = make_url(url).set(drivername="postgresql+psycopg")
    # A pooled connection may be older than a restart of the server: it is tried before it is handed out.
    return create_engine(named, creator=partial(connect, url), pool_pre_ping=True)


def _check_url(setting: str) -> str:
    """The URL with the scheme that libpq knows. No part of a malformed one is shown: it may be the password."""
    scheme, separator, rest = setting.strip().partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ConfigurationError("EPIC_OMOP_DATABASE_URL does not begin with postgresql://.", _EXAMPLE + ".")
    url = f"postgresql://{rest}"
    _parsed(url)
    return url


def _parsed(url: str) -> dict[str, str]:
    """libpq's parameters in a URL. Raises ConfigurationError that says nothing of a URL that cannot be read."""
    malformed = ConfigurationError(
        "The database's URL cannot be read.",
        f"{_EXAMPLE}; write each of @ : / ? # % in a user name or password as % and two hexadecimal digits.",
    )
    try:
        port = urlsplit(url).port
        parameters = conninfo_to_dict(url)
    except (ValueError, psycopg.Error):
        raise malformed from None
    # An @ or / left as it is would make libpq take the end of the password for the host, and name it in its error.
    if url.count("@") > 1 or ("@" in url and "@" not in urlsplit(url).netloc) or port == 0:
        raise malformed
    return {name: str(value) for name, value in parameters.items()}


def _where(given: dict[str, str]) -> str:
    return f"database {given.get('dbname', '(default)')} on {given.get('host', 'the local socket')}"


def _unreachable(given: dict[str, str], error: psycopg.Error) -> WarehouseError:
    reason = " ".join(str(error).split())
    for name in ("password", "sslpassword"):
        if given.get(name):
            reason = reason.replace(given[name], "***")
    if tells_full_disk(reason):
        return WarehouseError(f"The disk of PostgreSQL is full; {_where(given)} cannot be used: {reason}", MAKE_SPACE)
    return (WarehouseError if _is_refused_login(reason) else WarehouseUnavailable)(
        f"Cannot connect to PostgreSQL, {_where(given)}: {reason}",
        "Check that the server runs (`epic-omop db status`) and that EPIC_OMOP_DATABASE_URL is right.",
    )


def _is_refused_login(reason: str) -> bool:
    """Whether the server answers and does not let this user in: that does not pass by itself. libpq gives words alone."""
    return any(words in reason for words in ("authentication failed", "does not exist", "no pg_hba.conf entry"))


def _refuse_old_server(connection: psycopg.Connection, given: dict[str, str]) -> None:
    version = connection.info.server_version // 10000
    if version < OLDEST_SERVER:
        raise WarehouseError(
            f"The server of {_where(given)} is PostgreSQL {version}; epic-omop needs {OLDEST_SERVER} or newer.",
            "Use a newer server, or unset EPIC_OMOP_DATABASE_URL for the embedded one.",
        )
