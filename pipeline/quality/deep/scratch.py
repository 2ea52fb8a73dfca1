"""The scratch warehouse: schemas in the same database, beside the shared vocabulary, and a home for files.

One at a time: a session lock says whether its run lives, so that what a killed run left is found and removed by the
next one. Nothing here knows what is loaded into it.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from pipeline.core.errors import SiteBusy
from pipeline.core.files import make_folder
from pipeline.core.identifier_secret import identifier_secret
from pipeline.warehouse.runtime import LoadSizes, Runtime
from pipeline.warehouse.schema import install_schemas, schema_names
from pipeline.warehouse.server_failures import server_errors

__all__ = ["Scratch", "scratch_warehouse"]

#: Of the instance's schema names, so that the whole stays below PostgreSQL's 63 characters.
_NAME_LENGTH = 40

#: Another size of chunks than that of loads, and a pool already for a small load.
_SIZES = LoadSizes(chunk=192 * 1024, in_process=1024 * 1024)


@dataclass(frozen=True)
class Scratch:
    """A runtime whose schemas and home are the scratch warehouse's. `real` is the one that is verified."""

    real: Runtime
    runtime: Runtime

    @property
    def cdm(self) -> str:
        return self.runtime.settings.cdm_schema

    @property
    def etl(self) -> str:
        return self.runtime.settings.etl_schema


@contextmanager
def scratch_warehouse(runtime: Runtime) -> Iterator[Scratch]:
    """An empty warehouse for the block, removed at its end; before it, what a killed run left is removed.

    Raises SiteBusy while another deep verification of this warehouse runs, WarehouseError (such as where the database
    user may not create schemas), LandingError.
    """
    settings = runtime.settings
    folder = settings.home / "deep"
    with server_errors(), runtime.connect() as connection:
        connection.autocommit = True
        if not _lock(connection, settings.etl_schema):
            raise SiteBusy(
                "Another deep verification of this warehouse is under way.", "Wait until it has ended, or stop it."
            )
        _remove_all(connection, runtime, folder)
        try:
            yield _make(runtime, folder)
        finally:
            if not connection.closed:
                _remove_all(connection, runtime, folder)
                connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (_key(settings.etl_schema),))


def _lock(connection: psycopg.Connection, etl: str) -> bool:
    """Held by the session: the server lets go of it when the process is killed."""
    row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (_key(etl),)).fetchone()
    return bool(row and row[0])


def _key(etl: str) -> str:
    return f"epic-omop deep verification {etl}"


def _make(runtime: Runtime, folder: Path) -> Scratch:
    settings = runtime.settings
    name = secrets.token_hex(4)
    home = folder / name
    make_folder(home)
    index = settings.home / "vocabulary"
    make_folder(index)
    (home / "vocabulary").symlink_to(index.absolute(), target_is_directory=True)
    scratch = settings.model_copy(
        update={
            "home": home,
            "database_url": runtime.url,
            "cdm_schema": f"{_prefix(settings.cdm_schema)}{name}",
            "etl_schema": f"{_prefix(settings.etl_schema)}{name}",
            "site_mappings": settings.site_mappings_folder,
            # What is named by an identifier has keys under the instance's secret, not under one of the scratch home.
            "identifier_key": identifier_secret(settings).decode(),
            "workers": settings.workers + 1,
        }
    )
    install_schemas(runtime.url, **schema_names(scratch))
    made = Scratch(runtime, Runtime(scratch, runtime.clock, _SIZES))
    with runtime.connect() as connection:
        for table in ("vocabulary_release", "local_map"):  # by which the same lines make the same rows
            connection.execute(f"INSERT INTO {made.etl}.{table} SELECT * FROM {settings.etl_schema}.{table}")
    return made


def _remove_all(connection: psycopg.Connection, runtime: Runtime, folder: Path) -> None:
    """All scratch schemas of this warehouse and their files: whoever holds the lock is the only one who has any."""
    for schema in (runtime.settings.cdm_schema, runtime.settings.etl_schema):
        prefix = _prefix(schema)
        rows = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s) AND substr(nspname, %s) ~ '^[0-9a-f]{8}$'",
            (prefix, len(prefix) + 1),
        ).fetchall()
        for (name,) in rows:
            _drop(connection, name)
    shutil.rmtree(folder, ignore_errors=True)


def _drop(connection: psycopg.Connection, schema: str) -> None:
    """Table by table: one statement for all would need more locks than a server has by default."""
    tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()
    for (table,) in tables:
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.Identifier(schema, table)))
    connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


def _prefix(schema: str) -> str:
    return f"{schema[:_NAME_LENGTH]}_deep_"
