"""Removing old backups, and the files that no other backup needs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UsageError
from pipeline.core.files import put_in_place
from pipeline.operations.backup.create import UNFINISHED, alone_in
from pipeline.operations.backup.manifest import backups_in, read_manifest
from pipeline.operations.backup.pool import FilePool, storage_errors

__all__ = ["PrunedBackups", "prune_backups"]


@dataclass(frozen=True)
class PrunedBackups:
    """Names of the backups, the oldest first; files that went, and their bytes with those of the dumps."""

    removed: Sequence[str]
    kept: Sequence[str]
    files: int
    bytes: int


def prune_backups(folder: Path, keep: int, *, is_dry: bool = False) -> PrunedBackups:
    """Keep the newest `keep` backups. Safe to stop: run it again.

    Nothing goes where the manifest of one that is kept cannot be read. Raises UsageError, StorageError, TransientError
    while a backup is made there.
    """
    if keep < 1:
        raise UsageError("At least one backup is kept.", "To remove all, delete the folder.")
    names = backups_in(folder)
    with storage_errors(folder), alone_in(folder):
        removed, kept = names[:-keep], names[-keep:]
        needed = {file.sha256 for name in kept for file in read_manifest(folder / name).files}
        size = 0
        for name in removed:
            size += sum(path.stat().st_size for path in (folder / name).iterdir())
            if not is_dry:
                rest = folder / f".{name}{UNFINISHED}"
                put_in_place(folder / name, rest)
                shutil.rmtree(rest)
        unneeded = [path for path in FilePool(folder, {}).stored() if path.name not in needed]
        size += sum(path.stat().st_size for path in unneeded)
        for path in () if is_dry else unneeded:
            path.unlink()
    return PrunedBackups(removed, kept, len(unneeded), size)
