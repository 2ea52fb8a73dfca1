"""Dagster's SQLite files under DAGSTER_HOME, made by one process at a time. What is in them is Dagster's own.

Dagster makes them when they are first opened, and two processes that do so together (`epic-omop status` beside the first
`epic-omop ui`, whose processes are several) leave two revisions in a file: none can open it any more.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline.core.errors import ConfigurationError

__all__ = ["make_storage"]

_FILES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")
_REVISIONS = "SELECT version_num FROM alembic_version"


def make_storage(folder: Path) -> None:
    """Make the storage of DAGSTER_HOME `folder` where it is not there yet; fix files that have two revisions.

    Raises OSError where the folder cannot be written, ConfigurationError where Dagster cannot open its storage.
    """
    if _is_made(folder):
        return
    with _alone(folder):
        if _is_made(folder):
            return
        for name in _FILES:
            _leave_the_newest(folder / name)
        _open_once(folder)


def _is_made(folder: Path) -> bool:
    return all(len(_revisions(folder / name)) == 1 for name in _FILES)


def _revisions(file: Path) -> list[str]:
    """Revisions that a file names; none where it is not there, is being made, or is not SQLite."""
    if not file.is_file():
        return []
    try:
        with closing(sqlite3.connect(file, timeout=30)) as connection:
            return [row[0] for row in connection.execute(_REVISIONS)]
    except sqlite3.DatabaseError:
        return []


def _leave_the_newest(file: Path) -> None:
    """Every process made all tables of the newest revision, so that it is the one that holds."""
    revisions = _revisions(file)
    if len(revisions) < 2:
        return
    newest = _newest_revision()
    if newest in revisions:
        with closing(sqlite3.connect(file, timeout=30)) as connection, connection:
            connection.execute("DELETE FROM alembic_version WHERE version_num <> ?", (newest,))


def _newest_revision() -> str | None:
    import dagster
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(dagster.__file__).parent / "_core/storage/alembic")).get_current_head()


def _open_once(folder: Path) -> None:
    import dagster as dg

    try:
        with dg.DagsterInstance.from_config(str(folder)):
            pass
    except Exception as error:  # of SQLAlchemy, Alembic, Dagster or a driver; its text may hold a URL with a password
        raise ConfigurationError(
            f"Dagster's storage under {folder} cannot be opened ({type(error).__name__}).",
            "It holds runs and switches of sites, no data of the warehouse. If the disk is full or the folder cannot be"
            " written, fix that; otherwise end `epic-omop ui`, move the folder away, and let it be made anew"
            " (`epic-omop site enable` switches sites on again).",
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / "storage.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
