"""Reading what has landed: single lines by their place, and whole files as streams. Nothing else opens a landed file.

A file is named by the path that its export gave it, `files/Observation.00002.ndjson`. It is stored compressed beside that
name, with `.zst` after it (`landing/frames.py`); files of older versions lie under the name itself. A place is an offset
and a length in the bytes as they were exported, as `etl.resource_state` and dead letters hold it.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from pipeline.core.errors import LandingError
from pipeline.core.files import COPY_BYTES, landing_errors
from pipeline.landing.files import FileDigest, RunningDigest
from pipeline.landing.frames import FRAME_BYTES, FramedFile

__all__ = [
    "compressed_name",
    "frames_of",
    "is_landed",
    "landed_bytes",
    "landed_digest",
    "open_landed",
    "read_at",
    "read_line",
    "read_lines_at",
    "stored_file",
]

_ADVICE = "The landing store was changed from outside: restore that file, or export again."


class Seekable(Protocol):
    """What `read_at` reads from: an open file, or one made of frames."""

    def seek(self, offset: int, /) -> int: ...

    def read(self, size: int, /) -> bytes | None: ...


def compressed_name(file: Path) -> Path:
    """Where a landed file lies compressed."""
    return file.with_name(f"{file.name}.zst")


def stored_file(file: Path) -> Path:
    """The file on disk that holds a landed file; the compressed one unless there is only a plain one."""
    compressed = compressed_name(file)
    return file if not compressed.exists() and file.exists() else compressed


def is_landed(file: Path) -> bool:
    """Whether there is such a file, compressed or not."""
    return compressed_name(file).exists() or file.exists()


def landed_bytes(file: Path) -> int:
    """Bytes of a landed file as it was exported; its content is not read. Raises LandingError."""
    with _open_with_errors(file) as stream:
        return stream.seek(0, io.SEEK_END)


def landed_digest(file: Path) -> FileDigest:
    """Size, lines and SHA-256 of a landed file as it was exported, all of it read again. Raises LandingError."""
    digest = RunningDigest()
    with _open_with_errors(file) as stream:
        while chunk := stream.read(COPY_BYTES):
            digest.add(chunk)
    return digest.result()


def read_line(file: Path, offset: int, length: int) -> bytes:
    """One line: `length` bytes at `offset` of a landed file. Raises LandingError where they are not there."""
    return next(read_lines_at(file, [(offset, length)]))


def read_lines_at(file: Path, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Lines of one file by (offset, length), which it is opened once for; fastest in the order of their offsets.

    Raises LandingError where the file or one of the lines is not there.
    """
    with _open_with_errors(file) as stream:
        for offset, length in places:
            yield read_at(stream, file, offset, length)


def read_at(stream: Seekable, file: Path, offset: int, length: int) -> bytes:
    """`length` bytes at `offset` of an open landed file. Raises LandingError where they are not there."""
    with landing_errors(file):
        stream.seek(offset)
        content = stream.read(length) or b""
    if len(content) != length:
        raise LandingError(f"{file} has no {length} bytes at offset {offset}.", _ADVICE)
    return content


def frames_of(file: Path, chunk_bytes: int) -> list[tuple[int, int, int]] | None:
    """(offset, length, first line) of pieces of whole frames, each of at least `chunk_bytes`; None for a plain file.

    Raises LandingError.
    """
    with _open_with_errors(file) as stream:
        return list(stream.table.chunks(chunk_bytes)) if isinstance(stream, FramedFile) else None


def open_landed(file: Path) -> BinaryIO:
    """A landed file as a stream of the bytes that were exported, to be read from any offset; the caller closes it.

    Raises LandingError where it is missing or cannot be read.
    """
    return cast(BinaryIO, io.BufferedReader(_open(file), FRAME_BYTES))


@contextmanager
def _open_with_errors(file: Path) -> Iterator[FramedFile | io.FileIO]:
    with landing_errors(file), _open(file) as stream:
        yield stream


def _open(file: Path) -> FramedFile | io.FileIO:
    with landing_errors(file):
        try:
            return FramedFile(compressed_name(file))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        try:
            return file.open("rb", buffering=0)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise LandingError(f"{file} is missing.", _ADVICE) from error
            raise
