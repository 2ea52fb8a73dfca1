"""Making a backup while nights may run.

What is in a backup is what a power failure at one instant would have left, and every part of the pipeline is right after
that. The instant is that of the database's snapshot. Landed files are copied first without one; then: the list of landed
files, the snapshot, the list again. A finished export never changes but by erasing and pruning: where one did between the
two lists or until it was copied, another snapshot is taken. What came later than the snapshot is left out. No lock that a
load takes is taken.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from filelock import FileLock, Timeout
from psycopg import sql

from pipeline.core.errors import LandingError, StorageError, TransientError, UsageError, WarehouseError
from pipeline.core.files import make_folder, put_in_place, sync_file
from pipeline.operations.backup.contents import HomeFiles, find_settings, landed_files, member_files
from pipeline.operations.backup.database import DUMP, DumpedDatabase, dump, extensions_in, members_of_roles, schemas_of
from pipeline.operations.backup.manifest import (
    BackedUpFile,
    Kind,
    Manifest,
    backups_in,
    program_version,
    read_manifest,
    write_manifest,
)
from pipeline.operations.backup.pool import Changed, FilePool, sha256_of, storage_errors
from pipeline.warehouse.access_looks import record_look
from pipeline.warehouse.roles import Warehouse
from pipeline.warehouse.runtime import Runtime

__all__ = ["UNFINISHED", "Stage", "alone_in", "create_backup"]

#: Stage, bytes done, bytes in all (0: not known).
Stage = Callable[[str, int, int], None]

#: End of the hidden name of a backup that is being made or removed.
UNFINISHED = ".unfinished"
_TRIES = 10


@dataclass(frozen=True)
class _Snapshot:
    what: DumpedDatabase
    exports: list[tuple[str, int]]
    revision: str
    server_version: int
    members: dict[str, list[str]]


def create_backup(
    runtime: Runtime, folder: Path, *, include_secrets: bool = False, progress: Stage = lambda _stage, _done, _all: None
) -> Manifest:
    """A further backup in `folder`, which is made if need be; what it holds of earlier ones is not copied again.

    Raises UsageError where the folder is something else, TransientError while another backup is made in it, StorageError
    for a full disk (what is complete stays), WarehouseError.
    """
    _refuse_other_folder(runtime, folder)
    with storage_errors(folder), alone_in(folder):
        pool = FilePool(folder, _known(folder))
        pool.remove_rests()
        for rest in folder.glob(f".*{UNFINISHED}"):
            shutil.rmtree(rest)
        try:
            return _create(runtime, folder, pool, progress, include_secrets=include_secrets)
        except LandingError as error:
            raise StorageError(error.message, error.advice) from error


def _create(runtime: Runtime, folder: Path, pool: FilePool, progress: Stage, *, include_secrets: bool) -> Manifest:
    now = runtime.clock.now()
    name = f"{now:%Y%m%dT%H%M%S}Z"
    if (folder / name).exists():
        raise UsageError(f"{folder / name} is there already.", "Make the next backup a second later.")
    unfinished = folder / f".{name}{UNFINISHED}"
    make_folder(unfinished)
    record_look(runtime, "snapshot", detail="backup", required=False)
    found = find_settings(runtime.settings)
    # Before the snapshot: the anchor of the access log names no entry that the database has not.
    files = _small_files(runtime, pool, found.settings, "settings")
    if include_secrets:
        files += _small_files(runtime, pool, found.secrets, "secret")
    try:
        with runtime.connect() as connection:
            landed = landed_files(runtime.landing, runtime.settings.home, _exports(connection))
        with suppress(Changed):
            _copy(runtime, pool, landed, progress)
        for _ in range(_TRIES):
            with suppress(Changed), _snapshot(runtime) as snapshot:
                files_landed = _copy(runtime, pool, snapshot[1], progress)
                files_landed += _small_files(runtime, pool, member_files(runtime.settings.home), "settings")
                dump(runtime.url, unfinished / DUMP, snapshot[0].what, lambda size: progress("database", size, 0))
                break
        else:
            raise TransientError("Landed files are erased or pruned again and again.", "Try again when that has ended.")
        manifest = _manifest(runtime, name, unfinished, snapshot[0], [*files, *files_landed], found,
                             include_secrets=include_secrets)  # fmt: skip
        write_manifest(unfinished, manifest)
        put_in_place(unfinished, folder / name)
        return manifest
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _snapshot(runtime: Runtime) -> Iterator[tuple[_Snapshot, dict[str, tuple[int, int, int]]]]:
    """A snapshot of the database, and the landed files that belong to it. Raises Changed where one changed meanwhile."""
    warehouse, home = Warehouse.of(runtime.settings), runtime.settings.home
    with runtime.connect() as connection:
        before = landed_files(runtime.landing, home, _exports(connection))
        connection.rollback()
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        row = connection.execute("SELECT pg_export_snapshot(), (SELECT version_num FROM alembic_version)").fetchone()
        assert row is not None
        schemas = schemas_of(connection, warehouse)
        exports = _exports(connection)
        after = landed_files(runtime.landing, home, exports)
        if any(after.get(path) != state for path, state in before.items()):
            raise Changed
        what = DumpedDatabase(schemas, extensions_in(connection, schemas), row[0])
        members = members_of_roles(connection, warehouse)
        yield _Snapshot(what, exports, row[1], connection.info.server_version, members), after


def _exports(connection: psycopg.Connection) -> list[tuple[str, int]]:
    return [
        (site, number) for site, number in connection.execute("SELECT site, export_id FROM export_job ORDER BY 1, 2")
    ]


def _copy(
    runtime: Runtime, pool: FilePool, landed: dict[str, tuple[int, int, int]], progress: Stage
) -> list[BackedUpFile]:
    """Raises Changed where a file is not the one of the list any more."""
    total, done = sum(size for size, _, _ in landed.values()), 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        progress("landing", done, total)

    files = []
    for path, (size, modified, _) in landed.items():
        file = pool.add(runtime.settings.home, path, "landing", add)
        if (file.bytes, file.modified_ns) != (size, modified):
            raise Changed(path)
        files.append(file)
    return files


def _small_files(runtime: Runtime, pool: FilePool, paths: list[str], kind: Kind) -> list[BackedUpFile]:
    """Without those that are removed or written at that moment."""
    files = []
    for path in paths:
        with suppress(Changed):
            files.append(pool.add(runtime.settings.home, path, kind, lambda _size: None))
    return files


def _manifest(
    runtime: Runtime, name: str, folder: Path, snapshot: _Snapshot, files: list[BackedUpFile], found: HomeFiles, *,
    include_secrets: bool,
) -> Manifest:  # fmt: skip
    settings, dumped = runtime.settings, folder / DUMP
    with dumped.open("rb+") as stream:
        sync_file(stream)
    return Manifest(
        backup=name,
        created_at=runtime.clock.now().isoformat(),
        program=program_version(),
        cdm_version=str(settings.cdm_version),
        schemas={"cdm": settings.cdm_schema, "vocab": settings.vocab_schema, "etl": settings.etl_schema},
        role_suffix=settings.role_suffix,
        alembic_revision=snapshot.revision,
        server_version=snapshot.server_version,
        dump_bytes=dumped.stat().st_size,
        dump_sha256=sha256_of(dumped),
        files=files,
        extensions=snapshot.what.extensions,
        left_out=[*([] if include_secrets else found.secrets), *found.outside],
        members=snapshot.members,
        variables=sorted(name for name in os.environ if name.startswith("EPIC_OMOP_") and name != "EPIC_OMOP_HOME"),
    )


def _known(folder: Path) -> dict[str, BackedUpFile]:
    """Files of the newest backup that can be read."""
    with suppress(UsageError):
        for name in reversed(backups_in(folder)):
            with suppress(StorageError, UsageError):
                return {file.path: file for file in read_manifest(folder / name).files}
    return {}


def _refuse_other_folder(runtime: Runtime, folder: Path) -> None:
    """Raises UsageError for a folder in the landing store, and for one that holds what is no backup; WarehouseError where
    there is no warehouse."""
    if folder.resolve().is_relative_to(runtime.settings.landing.resolve()):
        raise UsageError(f"{folder} is in the landing store.", "Name a folder on another disk.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file.", "Name a folder.")
    with storage_errors(folder):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    strange = [name for name in names if name not in {"files", "lost+found"} and not name.startswith(".")]
    if any(not (folder / name / DUMP).exists() for name in strange):
        raise UsageError(f"{folder} holds other things than backups.", "Name a new or empty folder, or one of backups.")
    with runtime.connect() as connection:
        etl = sql.Identifier(runtime.settings.etl_schema, "alembic_version").as_string(connection)
        row = connection.execute("SELECT to_regclass(%s)", (etl,)).fetchone()
        if row is None or row[0] is None:
            raise WarehouseError("The database holds no warehouse: nothing to back up.", "See `epic-omop db init`.")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """One process at a time changes a folder of backups. Raises TransientError, StorageError."""
    try:
        make_folder(folder)
    except LandingError as error:
        raise StorageError(error.message, error.advice) from error
    try:
        with FileLock(folder / ".lock", timeout=0, mode=0o600):
            yield
    except Timeout:
        raise TransientError(f"Another backup is being made in {folder}.", "Wait until it has ended.") from None
