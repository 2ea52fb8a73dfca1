"""Writing files that are either whole or absent: temporary name, fsync, rename, fsync of the folder.

Everything in the landing store passes through here: files are 0600 in 0700 folders, and an OSError becomes a
LandingError that names the file.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pipeline.core.errors import LandingError
from pipeline.core.file_errors import remedy
from pipeline.fhir.lines import LineCounter

__all__ = [
    "COPY_BYTES",
    "FileDigest",
    "LandingWriter",
    "RunningDigest",
    "create_file",
    "file_digest",
    "landing_errors",
    "make_folder",
    "sync_folder",
    "write_whole",
]

#: Size of the pieces in which files are read and written.
COPY_BYTES = 1 << 20

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700


@dataclass(frozen=True)
class FileDigest:
    """What was seen while a file streamed by: size in bytes, lines that are not blank, SHA-256 in hexadecimal."""

    bytes: int
    lines: int
    sha256: str


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


def make_folder(folder: Path) -> None:
    """Create the folder and its parents, readable by the owner only. Raises LandingError."""
    with landing_errors(folder):
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file so that after a crash it is there with all its content or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with landing_errors(path):
        temporary.unlink(missing_ok=True)
        with create_file(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)


def file_digest(path: Path) -> FileDigest:
    """Size, lines and SHA-256 of a file on disk. Raises LandingError."""
    digest = RunningDigest()
    with landing_errors(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(COPY_BYTES):
            digest.add(chunk)
    return digest.result()


class LandingWriter:
    """Streams one file into the store. A context manager: without `commit` nothing remains at the end of the block.

    Memory does not grow with the file. `restart` begins anew after a cut connection.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f"{path.name}.part")
        self._digest = RunningDigest()

    def __enter__(self) -> LandingWriter:
        with landing_errors(self.path):
            self._temporary.unlink(missing_ok=True)  # what a killed process left
            self._file = create_file(self._temporary)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk refuses the flush as well; the first error is the one to tell
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises LandingError, also when the disk is full."""
        with landing_errors(self.path):
            self._file.write(chunk)
        self._digest.add(chunk)

    def restart(self) -> None:
        """Forget what was written."""
        with landing_errors(self.path):
            self._file.seek(0)
            self._file.truncate()
        self._digest = RunningDigest()

    @property
    def bytes_written(self) -> int:
        return self._digest.size

    def digest(self) -> FileDigest:
        """What was written so far."""
        return self._digest.result()

    def commit(self) -> FileDigest:
        """Give the file its final name; from here on it survives a crash."""
        with landing_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._temporary.rename(self.path)
            sync_folder(self.path.parent)
        return self._digest.result()


class RunningDigest:
    """Size, lines and SHA-256 of bytes that stream by, in constant memory."""

    def __init__(self) -> None:
        self.size = 0
        self._lines = LineCounter()
        self._sha256 = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._lines.add(chunk)
        self._sha256.update(chunk)

    def result(self) -> FileDigest:
        return FileDigest(self.size, self._lines.lines, self._sha256.hexdigest())


def create_file(path: Path) -> BinaryIO:
    """A new file that only its owner can read, open for writing. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    return open(descriptor, "wb", buffering=COPY_BYTES)  # noqa: PTH123 - a Path cannot open a descriptor


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
