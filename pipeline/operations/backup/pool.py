"""Files of backups, each content once: `files/<two digits>/<SHA-256>`. What is there is whole: names are given last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.core.errors import StorageError
from pipeline.core.file_errors import remedy
from pipeline.core.files import COPY_BYTES, create_file, make_folder, put_in_place, sync_file, temporary_name
from pipeline.operations.backup.manifest import BackedUpFile, Kind

__all__ = ["Changed", "FilePool", "Progress", "sha256_of", "storage_errors"]

#: Bytes since the last call.
Progress = Callable[[int], None]


class Changed(Exception):
    """A file was changed or removed while it was read."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a StorageError that names the file or folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        advice = remedy(error) or "Check the disk and its rights, then run the same command again."
        raise StorageError(f"{error.filename or path} cannot be read or written: {reason}.", advice) from error


class FilePool:
    """`known`: files of the backup before, which are not read again while size and time are the same."""

    def __init__(self, folder: Path, known: dict[str, BackedUpFile]) -> None:
        self._folder = folder / "files"
        self._known = known

    def path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def stored(self) -> list[Path]:
        """Every file that is whole."""
        return sorted(self._folder.glob("[0-9a-f][0-9a-f]/*"))

    def add(self, home: Path, path: str, kind: Kind, progress: Progress) -> BackedUpFile:
        """Copy a file of the home unless its content is there. Raises Changed, OSError."""
        source = home / path
        try:
            with source.open("rb") as stream:
                before = os.fstat(stream.fileno())
                known = self._known.get(path)
                if known and (known.bytes, known.modified_ns) == (before.st_size, before.st_mtime_ns):
                    stored = self.path(known.sha256)
                    if stored.exists() and stored.stat().st_size == known.bytes:
                        progress(known.bytes)
                        return BackedUpFile(path, kind, known.bytes, known.sha256, known.modified_ns)
                sha256 = self._copied(stream, progress)
                after = source.stat()
        except FileNotFoundError as error:
            if error.filename == str(source):
                raise Changed(path) from None
            raise
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
            raise Changed(path)
        found = self._known[path] = BackedUpFile(path, kind, before.st_size, sha256, before.st_mtime_ns)
        return found

    def _copied(self, stream: BinaryIO, progress: Progress) -> str:
        make_folder(self._folder)
        temporary = temporary_name(self._folder / "incoming")
        digest = hashlib.sha256()
        try:
            with create_file(temporary) as copy:
                while block := stream.read(COPY_BYTES):
                    digest.update(block)
                    copy.write(block)
                    progress(len(block))
                sync_file(copy)
            target = self.path(digest.hexdigest())
            make_folder(target.parent)
            put_in_place(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest()

    def remove_rests(self) -> None:
        """Of a backup that was killed."""
        for rest in self._folder.glob(".incoming.*.tmp"):
            with suppress(FileNotFoundError):
                rest.unlink()


def sha256_of(file: Path, progress: Progress = lambda _bytes: None) -> str:
    """Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(COPY_BYTES):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()
