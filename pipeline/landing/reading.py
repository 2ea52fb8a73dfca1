"""Reading what has landed: single lines by their place, and whole files as streams. Nothing else opens a landed file.

A place is an offset and a length in the bytes as they were exported, as `etl.resource_state` and dead letters hold it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import LandingError
from pipeline.landing.files import landing_errors

__all__ = ["open_landed", "read_line", "read_lines_at"]

_ADVICE = "The landing store was changed from outside: restore that file, or export again."


def read_line(file: Path, offset: int, length: int) -> bytes:
    """One line: `length` bytes at `offset` of a landed file. Raises LandingError where they are not there."""
    return next(read_lines_at(file, [(offset, length)]))


def read_lines_at(file: Path, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Lines of one file by (offset, length), which it is opened once for; fastest in the order of their offsets.

    Raises LandingError where the file or one of the lines is not there.
    """
    with open_landed(file) as stream:
        for offset, length in places:
            with landing_errors(file):
                stream.seek(offset)
                line = stream.read(length)
            if len(line) != length:
                raise LandingError(f"{file} has no {length} bytes at offset {offset}.", _ADVICE)
            yield line


def open_landed(file: Path) -> BinaryIO:
    """A landed file as a stream of the bytes that were exported, to be read from any offset; the caller closes it.

    Raises LandingError where it is missing or cannot be read.
    """
    with landing_errors(file):
        try:
            return file.open("rb")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise LandingError(f"{file} is missing.", _ADVICE) from error
            raise
