"""Putting files into the store, compressed, so that each is whole or absent; equal files are stored once.

A file whose bytes an earlier export of the site has is a hard link to that one: the file system counts its users, and
each export's folder can be removed by itself. Reading is in `landing/reading.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pipeline.core.errors import LandingError
from pipeline.core.files import COPY_BYTES, create_file, landing_errors, put_in_place, sync_file
from pipeline.landing.files import FileDigest, RunningDigest
from pipeline.landing.frames import FramedFile, FrameWriter
from pipeline.landing.reading import compressed_name

__all__ = ["FindTwin", "StoredWriter", "compressed", "link_twin", "plain", "same_content", "store_plain"]

#: A landed file with the same bytes, as it is on disk; None: there is none.
FindTwin = Callable[[FileDigest], Path | None]

#: So much is kept in memory before anything is compressed: of a file that turns out to be stored already, nothing is.
_WAITING_BYTES = 8 * 1024 * 1024


class StoredWriter:
    """Streams one file into the store. A context manager: without `commit` nothing remains at the end of the block.

    `path` is the file's name in its export. Memory does not grow with the file. `restart` begins anew.
    """

    def __init__(self, path: Path, find_twin: FindTwin) -> None:
        self.path = path
        self._find_twin = find_twin
        self._temporary = path.with_name(f"{path.name}.part")
        self._reset()

    def _reset(self) -> None:
        self._digest = RunningDigest()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def __enter__(self) -> StoredWriter:
        with landing_errors(self.path):
            self._temporary.unlink(missing_ok=True)  # what a killed process left
            self._file = create_file(self._temporary)
        self._frames = FrameWriter(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk refuses the flush as well; the first error is the one to report
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises LandingError, also when the disk is full."""
        self._digest.add(chunk)
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        if self._waiting_bytes >= _WAITING_BYTES:
            self._compress()

    def _compress(self) -> None:
        with landing_errors(self.path):
            for chunk in self._waiting:
                self._frames.write(chunk)
        self._waiting, self._waiting_bytes = [], 0

    def restart(self) -> None:
        """Forget what was written."""
        with landing_errors(self.path):
            self._file.seek(0)
            self._file.truncate()
        self._frames = FrameWriter(self._file)
        self._reset()

    @property
    def bytes_written(self) -> int:
        return self._digest.size

    def digest(self) -> FileDigest:
        """What was written so far."""
        return self._digest.result()

    def commit(self) -> FileDigest:
        """Give the file its final name; from here on it survives a crash. Raises LandingError."""
        digest = self._digest.result()
        twin = self._find_twin(digest)
        if twin is None or not link_twin(twin, self.path):
            self._compress()
            with landing_errors(self.path):
                self._frames.finish()
                sync_file(self._file)
                put_in_place(self._temporary, compressed_name(self.path))
        return digest


def store_plain(part: Path, path: Path, digest: FileDigest, find_twin: FindTwin) -> None:
    """Store a complete file that lies in `part`, which is kept, under the name of `path`. Raises LandingError."""
    twin = find_twin(digest)
    if twin is not None and link_twin(twin, path):
        return
    with compressed(path) as (write, temporary), part.open("rb", buffering=0) as content:
        while chunk := content.read(COPY_BYTES):
            write(chunk)
    with landing_errors(path):
        put_in_place(temporary, compressed_name(path))


_Write = Callable[[bytes], object]


@contextmanager
def compressed(path: Path) -> Iterator[tuple[_Write, Path]]:
    """A function that writes bytes, as frames, into a temporary file beside `path`, and that file's name.

    It is durable at the end of the block, and the caller renames it. Raises LandingError; nothing remains then.
    """
    with _temporary(path) as (file, temporary):
        frames = FrameWriter(file)
        yield frames.write, temporary
        frames.finish()


@contextmanager
def plain(path: Path) -> Iterator[tuple[_Write, Path]]:
    """The same for a file that is kept as it is."""
    with _temporary(path) as (file, temporary):
        yield file.write, temporary


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    temporary = path.with_name(f"{path.name}.zst.tmp")
    with landing_errors(path):
        temporary.unlink(missing_ok=True)
        try:
            with create_file(temporary) as file:
                yield file, temporary
                sync_file(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def link_twin(twin: Path, path: Path) -> bool:
    """Make `path` another name of a stored file; False where that one is damaged or the disk knows no such links."""
    target = compressed_name(path)
    temporary = path.with_name(f"{path.name}.zst.tmp")
    try:
        with FramedFile(twin) as stored:
            stored.check()
        temporary.unlink(missing_ok=True)
        os.link(twin, temporary)
        put_in_place(temporary, target)
        temporary.unlink(missing_ok=True)  # a rename between two names of one file does nothing
    except (OSError, LandingError):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def same_content(stored: Path, digest: FileDigest) -> bool:
    """Whether a stored file, given as it is on disk, holds these bytes; all of it is read. False where it is damaged."""
    seen = RunningDigest()
    try:
        with FramedFile(stored) as content:
            while chunk := content.read(COPY_BYTES):
                seen.add(chunk)
    except (OSError, LandingError):
        return False
    return seen.result() == digest
