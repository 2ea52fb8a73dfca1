"""Files and folders that are either whole or absent: temporary name, fsync, rename, fsync of the folder.

Nothing else in the project renames or syncs. Files are 0600 in 0700 folders; what says that it raises LandingError turns
an OSError into one that names the file.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.core.errors import LandingError
from pipeline.core.file_errors import remedy

__all__ = [
    "COPY_BYTES",
    "create_file",
    "disk_errors",
    "landing_errors",
    "make_folder",
    "put_in_place",
    "replace_file",
    "sync_file",
    "sync_folder",
    "temporary_name",
    "write_whole",
]

#: Size of the pieces in which files are read and written.
COPY_BYTES = 1 << 20
_FILE_MODE = 0o600
_FOLDER_MODE = 0o700


@contextmanager
def landing_errors(path: Path) -> Iterator[None]:
    """Turns an OSError at `path` into a LandingError with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "Free space on that disk and run the same command again: what is complete is kept."
            raise LandingError(f"The disk is full: {path} cannot be written.", advice) from error
        reason, advice = error.strerror or type(error).__name__, remedy(error) or "Check the disk and its rights."
        raise LandingError(f"{path} cannot be read or written: {reason}.", advice) from error


@contextmanager
def disk_errors(what: str, folder: Path, then: str = "The export is taken up where it stands.") -> Iterator[None]:
    """Turns what the disk refuses, to Python or to polars, into a LandingError: `what` cannot be written. `then`: what
    follows when the cause is removed."""
    import polars as pl  # not above: commands that read settings alone start without it

    try:
        yield
    except (OSError, pl.exceptions.ComputeError) as error:  # polars reports a disk that fills up as ComputeError
        reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2]
        advice = remedy(error) or "See to that folder, then run the same command again."
        raise LandingError(f"{what} cannot be written ({reason}) under {folder}.", f"{advice} {then}") from error


def make_folder(folder: Path) -> None:
    """Create the folder and its parents, readable by the owner only. Raises LandingError."""
    with landing_errors(folder):
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def write_whole(path: Path, content: bytes, *, is_durable: bool = True) -> None:
    """Write a small file so that after a crash it is there with all its content or not at all. Raises LandingError.

    For files that one process at a time writes: a temporary file that is in the way is the rest of a killed one.
    `is_durable`: false for what is made again after a power failure.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with landing_errors(path):
        temporary.unlink(missing_ok=True)
        _write(temporary, content, is_durable=is_durable)
        put_in_place(temporary, path, is_durable=is_durable)


def replace_file(path: Path, content: bytes, *, is_durable: bool = True) -> None:
    """The same for files that several processes write: each under a temporary name of its own, and the last one's stays.

    Raises OSError, and leaves nothing behind.
    """
    temporary = temporary_name(path)
    try:
        _write(temporary, content, is_durable=is_durable)
        put_in_place(temporary, path, is_durable=is_durable)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """A hidden name in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def put_in_place(temporary: Path, path: Path, *, is_durable: bool = True) -> None:
    """Give a finished file, folder or link its name; it replaces a file of that name. Raises OSError.

    `is_durable`: the name survives a power failure. That of the content is the caller's (`sync_file`).
    """
    temporary.replace(path)
    if is_durable:
        sync_folder(path.parent)


def _write(path: Path, content: bytes, *, is_durable: bool) -> None:
    with create_file(path) as file:
        file.write(content)
        if is_durable:
            sync_file(file)


def create_file(path: Path) -> BinaryIO:
    """A new file that only its owner can read, open for writing. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    return open(descriptor, "wb", buffering=COPY_BYTES)  # noqa: PTH123 - a Path cannot open a descriptor


def sync_file(file: BinaryIO) -> None:
    """Make what was written survive a power failure."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
