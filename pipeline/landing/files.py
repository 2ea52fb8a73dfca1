"""Files on their way into the store: streamed under a temporary name, digested while they pass."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pipeline.core.files import COPY_BYTES, create_file, landing_errors, put_in_place, sync_file
from pipeline.fhir.lines import LineCounter

__all__ = [
    "FileDigest",
    "LandingWriter",
    "RunningDigest",
    "file_digest",
]


@dataclass(frozen=True)
class FileDigest:
    """What was seen while a file streamed by: size in bytes, lines that are not blank, SHA-256 in hexadecimal."""

    bytes: int
    lines: int
    sha256: str


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
        with suppress(OSError):  # a full disk refuses the flush as well; the first error is the one to report
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
            sync_file(self._file)
            put_in_place(self._temporary, self.path)
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
