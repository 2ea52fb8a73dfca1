"""Checking a backup, and restoring it into an empty home and an empty database.

Files come first, the database last and in one transaction. A restore that was interrupted left `restore.unfinished` in the
home, by which the same command goes through again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import ConfigurationError, LandingError, StorageError, UsageError
from pipeline.core.files import create_file, make_folder, put_in_place, sync_file, temporary_name, write_whole
from pipeline.core.settings import Settings
from pipeline.operations.backup.database import DUMP, holds_tables, restore, schemas_of
from pipeline.operations.backup.manifest import Manifest, find_backup, refuse_newer
from pipeline.operations.backup.pool import FilePool, sha256_of, storage_errors
from pipeline.warehouse.connection import connect
from pipeline.warehouse.roles import ROLES, Warehouse, grant_role, install_roles
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import install_schemas, known_revisions, schema_names

__all__ = ["Restored", "check_backup", "restore_backup"]

_MARK = "restore.unfinished"
#: Of a home in use: what a restore puts aside when it is forced, or refuses otherwise.
_IN_USE = ("landing", "staging", "transforming", "known", "seen", "mappings", "sites.yaml", "operations.yaml", "time_zone",
           "access_log.anchor", "identifier.key", "keys")  # fmt: skip

Stage = Callable[[str, int, int], None]


@dataclass
class Restored:
    """`missing_roles`: this database user may not make them. `not_granted`: role, user that was a member."""

    manifest: Manifest
    missing_roles: bool = False
    granted: int = 0
    not_granted: list[tuple[str, str]] = field(default_factory=list)
    put_aside: Path | None = None


def check_backup(
    folder: Path, backup: str | None = None, progress: Stage = lambda _stage, _done, _all: None
) -> Manifest:
    """Read everything of a backup again and compare digests. Raises UsageError for one of a newer version or none,
    StorageError that names what is damaged."""
    manifest = find_backup(folder, backup)
    refuse_newer(manifest, known_revisions())
    pool = FilePool(folder, {})
    sizes = {file.sha256: file.bytes for file in manifest.files}
    total, done = manifest.dump_bytes + sum(sizes.values()), 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        progress("checking", done, total)

    _check(folder / manifest.backup / DUMP, manifest.dump_bytes, manifest.dump_sha256, add)
    for sha256, size in sizes.items():
        _check(pool.path(sha256), size, sha256, add)
    return manifest


def _check(file: Path, size: int, sha256: str, progress: Callable[[int], None]) -> None:
    advice = "Restore another backup (`--backup`), or copy the folder of backups again from where it came."
    if not file.is_file():
        raise StorageError(f"The backup is incomplete: {file} is missing.", advice)
    with storage_errors(file):
        if file.stat().st_size != size or sha256_of(file, progress) != sha256:
            raise StorageError(f"The backup is damaged: {file} is not what was written.", advice)


def restore_backup(
    runtime: Runtime,
    folder: Path,
    *,
    backup: str | None = None,
    force: bool = False,
    progress: Stage = lambda _stage, _done, _all: None,
) -> Restored:
    """Restore a backup into the home and the database of the settings; both are empty unless `force`.

    Forced, what the home holds is put aside, and schemas of the same names are replaced. Raises UsageError,
    ConfigurationError where settings name other schemas or another version, StorageError, WarehouseError.
    """
    manifest = check_backup(folder, backup, progress)
    settings = runtime.settings
    _refuse_other_settings(settings, manifest)
    interrupted = _interrupted(settings.home, manifest)
    replace = _replaced_schemas(runtime, force=force or interrupted)
    restored = Restored(manifest)
    try:
        if not interrupted:
            restored.put_aside = _put_aside(settings.home, manifest, force=force)
            make_folder(settings.home)
            write_whole(settings.home / _MARK, f"{manifest.backup} {manifest.dump_sha256}\n".encode())
        with storage_errors(settings.home):
            _put_files(folder, settings.home, manifest, progress)
    except LandingError as error:
        raise StorageError(error.message, error.advice) from error
    progress("database", 0, 0)
    restore(runtime.url, folder / manifest.backup / DUMP, replace=replace, work=settings.home)
    install_schemas(runtime.url, **schema_names(settings))
    _give_roles(runtime, restored)
    (settings.home / _MARK).unlink()
    return restored


def _refuse_other_settings(settings: Settings, manifest: Manifest) -> None:
    now = {"cdm": settings.cdm_schema, "vocab": settings.vocab_schema, "etl": settings.etl_schema}
    wrong = [f"EPIC_OMOP_{key.upper()}_SCHEMA={name}" for key, name in manifest.schemas.items() if now[key] != name]
    if str(settings.cdm_version) != manifest.cdm_version:
        wrong.append(f"EPIC_OMOP_CDM_VERSION={manifest.cdm_version}")
    if settings.role_suffix != manifest.role_suffix:
        wrong.append(f"EPIC_OMOP_ROLE_SUFFIX={manifest.role_suffix}")
    if wrong:
        raise ConfigurationError(
            "The backup is of a warehouse with other settings than those of now.",
            f"Set {' '.join(wrong)}, then restore.",
        )


def _interrupted(home: Path, manifest: Manifest) -> bool:
    try:
        return (home / _MARK).read_text() == f"{manifest.backup} {manifest.dump_sha256}\n"
    except OSError:
        return False


def _replaced_schemas(runtime: Runtime, *, force: bool) -> list[str]:
    warehouse = Warehouse.of(runtime.settings)
    with connect(runtime.url) as connection:
        if not holds_tables(connection, list(warehouse.schemas)):
            return []
        if not force:
            raise UsageError(
                "The database holds a warehouse already; a backup is restored into an empty one.",
                "Name another database or home, or replace what is there with --force.",
            )
        row = connection.execute("SELECT to_regclass(%s)", (f'"{warehouse.etl}".vocabulary_release',)).fetchone()
        known = row is not None and row[0] is not None
        return schemas_of(connection, warehouse) if known else list(warehouse.schemas)


def _put_aside(home: Path, manifest: Manifest, *, force: bool) -> Path | None:
    used = [name for name in _IN_USE if (home / name).exists()]
    if not used:
        return None
    if not force:
        raise UsageError(
            f"{home} is in use ({', '.join(used[:4])}); a backup is restored into an empty home.",
            "Set EPIC_OMOP_HOME to a new folder, or put aside what is there with --force.",
        )
    aside = home / f"before-restore-{manifest.backup}"
    make_folder(aside)
    with storage_errors(aside):
        for name in used:
            target = aside / name
            if target.exists():
                raise UsageError(f"{aside} holds what an earlier restore put aside.", "Move it away, then try again.")
            put_in_place(home / name, target)
    return aside


def _put_files(folder: Path, home: Path, manifest: Manifest, progress: Stage) -> None:
    pool, done = FilePool(folder, {}), 0
    total = sum(file.bytes for file in manifest.files)
    for file in manifest.files:
        target = home / file.path
        make_folder(target.parent)
        temporary = temporary_name(target)
        try:
            with create_file(temporary) as copy, pool.path(file.sha256).open("rb") as stored:
                shutil.copyfileobj(stored, copy, 1 << 20)
                sync_file(copy)
            put_in_place(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        done += file.bytes
        progress("files", done, total)


def _give_roles(runtime: Runtime, restored: Restored) -> None:
    warehouse = Warehouse.of(runtime.settings)
    restored.missing_roles = not install_roles(runtime.url, warehouse)
    for role in ROLES:
        for user in restored.manifest.members.get(role, []):
            try:
                given = not restored.missing_roles and grant_role(runtime.url, warehouse, role, user)
            except UsageError:  # no such user in this server
                given = False
            if given:
                restored.granted += 1
            else:
                restored.not_granted.append((role, user))
