"""Databases that a session makes once and copies for whoever asks: a copy takes a fraction of an installation's time."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from filelock import FileLock
from psycopg import sql

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.load.fingerprints import rows_code_hash
from pipeline.publication.version import publication_version
from pipeline.warehouse.embedded.binaries import server_account
from pipeline.warehouse.schema import install_schemas
from pipeline.warehouse.vocabulary import compile_index, load_vocabulary

__all__ = [
    "Prepared", "empty", "fresh_database", "has_room", "install", "install_with_demo_vocabulary", "keep_in_memory", "prepared",
]  # fmt: skip


#: The tablespace that lies in memory, and the room that all databases of a session may take.
_MEMORY_NAME, _MEMORY_BYTES = "in_memory", 6 << 30


@contextmanager
def fresh_database(server_url: str, template: str = "template0") -> Iterator[str]:
    """CREATE DATABASE in the server, its URL, DROP DATABASE. A `template` is a database that nobody is connected to."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        # Files as they are: a third of the time in which a server of version 15 or newer, left to itself, logs each page.
        strategy = sql.SQL("STRATEGY FILE_COPY" if connection.info.server_version >= 150_000 else "")
        names = sql.Identifier(name), sql.Identifier(template)
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} {} {}").format(*names, strategy, _place(connection)))
        try:
            yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def has_room(memory: Path) -> bool:
    """Whether what a session writes has room there."""
    return memory.is_dir() and shutil.disk_usage(memory).free >= _MEMORY_BYTES


def keep_in_memory(server_url: str, home: Path, memory: Path) -> None:
    """Databases that are made from now on lie in `memory`, where that has room enough: a folder named as the home."""
    if not has_room(memory):
        return
    folder = memory / home.name / "databases"
    with FileLock(home / "memory.lock"), psycopg.connect(server_url, autocommit=True) as connection:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            if os.geteuid() == 0:
                account = server_account()
                os.chown(folder, account.uid, account.gid)
        if not _has_memory(connection):
            place = sql.Identifier(_MEMORY_NAME), sql.Literal(str(folder))
            connection.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(*place))


def _has_memory(connection: psycopg.Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM pg_tablespace WHERE spcname = %s", (_MEMORY_NAME,)).fetchone())


def _place(connection: psycopg.Connection) -> sql.Composable:
    return sql.SQL("TABLESPACE {}").format(sql.Identifier(_MEMORY_NAME)) if _has_memory(connection) else sql.SQL("")


def empty(connection: psycopg.Connection) -> None:
    """Delete what the tables of `cdm` and `etl` hold, the loaded vocabulary and the access log apart.

    Ten times as fast as TRUNCATE, which makes new files for each table and each index. Needs a superuser.
    """
    rows = connection.execute(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('cdm', 'etl')"
        " AND tablename NOT IN ('vocabulary_release', 'alembic_version', 'access_log', 'access_link', 'access_head')"
    ).fetchall()
    connection.execute("SET LOCAL session_replication_role = replica")  # references need no looking after
    for schema, table in rows:
        connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(schema, table)))


@dataclass(frozen=True)
class Prepared:
    """A database that nobody is connected to, and the home that belongs to it."""

    server_url: str
    database: str
    home: Path

    @contextmanager
    def copy(self, home: Path | None = None) -> Iterator[str]:
        """The URL of a copy of the database, as long as the block lasts; its home is copied to `home`."""
        if home is not None:
            shutil.copytree(self.home, home, dirs_exist_ok=True)
        with fresh_database(self.server_url, self.database) as url:
            yield url


def prepared(server_url: str, folder: Path, name: str, fill: Callable[[str, Path], None]) -> Prepared:
    """The database `name`, made by `fill(url, home)` unless another process of the session has made it already.

    `folder` is one for all processes of the session.
    """
    home = folder / name
    with FileLock(folder / f"{name}.lock"), psycopg.connect(server_url, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            unfinished = f"{name}_{os.getpid()}"
            home.mkdir()
            create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 {}")
            connection.execute(create.format(sql.Identifier(unfinished), _place(connection)))
            fill(urlunsplit(urlsplit(server_url)._replace(path=f"/{unfinished}")), home)
            # Its name says that it is whole.
            connection.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(unfinished), sql.Identifier(name))
            )
    return Prepared(server_url, name, home)


def install(url: str, home: Path) -> None:
    """The three schemas, empty."""
    install_schemas(url, cdm="cdm", vocab="vocab", etl="etl")


def install_with_demo_vocabulary(url: str, home: Path) -> None:
    """The three schemas with the demonstration vocabulary; in `home` its concept index, and the hashes of the code."""
    install(url, home)
    release = load_vocabulary(url, MAPPINGS_FOLDER / "demo_vocabulary", vocab_schema="vocab", etl_schema="etl")
    compile_index(url, release, vocab_schema="vocab", home=home)
    rows_code_hash(home)  # these two are kept in the home: no process that works in a copy computes them again
    publication_version(home)
