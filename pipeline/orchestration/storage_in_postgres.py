"""Dagster's storage as a schema of the warehouse's database (EPIC_OMOP_DAGSTER_SCHEMA): its address, and how it is made.

`dagster.yaml` names the class `WarehouseStorage`, which takes the address and its password from our settings, so that no
file of DAGSTER_HOME holds them. What is in the tables is Dagster's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import Settings
from pipeline.warehouse.connection import connect, database_url

if TYPE_CHECKING:
    from dagster_postgres import DagsterPostgresStorage

__all__ = ["make_schema", "open_storage", "storage_section", "storage_url"]

#: First half of the advisory lock's key, ours; the second is the hash of the schema's name.
_LOCK = 0x6461

_SECTION = """
storage: # EPIC_OMOP_DAGSTER_SCHEMA: a schema of the warehouse's database
  custom:
    module: pipeline.orchestration.warehouse_storage
    class: WarehouseStorage
    config:
      schema: {schema}
"""


def storage_section(schema: str) -> str:
    """What `dagster.yaml` says of it."""
    return _SECTION.format(schema=schema)


def storage_url(url: str, schema: str) -> str:
    """The database's URL for SQLAlchemy, with the schema alone in the search path.

    The driver is named: Dagster sends NOTIFY with a parameter, which psycopg 3, SQLAlchemy's choice since 2.1, cannot.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query["options"] = f"{query.get('options', '')} -csearch_path={schema}".strip()
    return urlunsplit(parts._replace(scheme="postgresql+psycopg2", query=urlencode(query, quote_via=quote)))


def open_storage(url: str, schema: str) -> DagsterPostgresStorage:
    """Dagster's storage in the schema, which exists; its tables are made if need be. Raises ConfigurationError without
    dagster-postgres."""
    try:
        from dagster_postgres import DagsterPostgresStorage
    except ImportError:
        raise ConfigurationError(
            "EPIC_OMOP_DAGSTER_SCHEMA needs the package dagster-postgres, which is not installed.",
            "Install it with `pip install 'epic-omop[postgres]'`, or unset the variable: SQLite files are used then.",
        ) from None
    return DagsterPostgresStorage(storage_url(url, schema))


def make_schema(settings: Settings, folder: Path) -> None:
    """Make the schema with Dagster's tables unless it is there, by one process at a time, and take over what the SQLite
    files of DAGSTER_HOME `folder` hold: runs, events, switches. The files stay as they are.

    It is made under another name and gets its own as the last thing: what is there is whole. Raises ConfigurationError
    where the schema is there and holds something else, WarehouseError where the database cannot be reached.
    """
    schema = str(settings.dagster_schema)
    url = database_url(settings.database_url, settings.home)
    with connect(url) as connection:
        connection.autocommit = True
        if _is_made(connection, schema):
            return
        with _alone(connection, schema):
            if not _is_made(connection, schema):
                _make(connection, url, schema, folder)


def _is_made(connection: psycopg.Connection, schema: str) -> bool:
    found = connection.execute(
        "SELECT to_regclass(%s) IS NOT NULL, to_regnamespace(%s) IS NOT NULL", (f"{schema}.event_logs", schema)
    ).fetchone()
    is_made, is_there = found or (False, False)
    if is_there and not is_made:
        raise ConfigurationError(
            f"The schema {schema} (EPIC_OMOP_DAGSTER_SCHEMA) is there and is no storage of Dagster.",
            "Name a schema that does not exist yet, or drop this one if it is empty.",
        )
    return bool(is_made)


def _make(connection: psycopg.Connection, url: str, schema: str, folder: Path) -> None:
    from pipeline.orchestration.storage_takeover import take_over

    unfinished = f"{schema[:55]}_new"
    names = {"new": sql.Identifier(unfinished), "name": sql.Identifier(schema)}
    try:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {new} CASCADE").format(**names))
        connection.execute(sql.SQL("CREATE SCHEMA {new}").format(**names))
        take_over(folder, open_storage(url, unfinished))  # its connections are closed after each use
        connection.execute(sql.SQL("ALTER SCHEMA {new} RENAME TO {name}").format(**names))
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"This database user may not make the schema {schema} (EPIC_OMOP_DAGSTER_SCHEMA).",
            "Let an administrator GRANT CREATE ON DATABASE … to it, as `epic-omop db init` needs as well.",
        ) from error


@contextmanager
def _alone(connection: psycopg.Connection, schema: str) -> Iterator[None]:
    key: Mapping[str, Any] = {"ours": _LOCK, "schema": schema}
    connection.execute("SELECT pg_advisory_lock(%(ours)s, hashtext(%(schema)s))", key)
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(%(ours)s, hashtext(%(schema)s))", key)
