"""What a line of NDJSON is, and counting lines as bytes stream by.

The rule, the same for the landing store and for the transform: a line ends at LF or at the end of the file; a last
line without LF is a line. A line that holds nothing but spaces, tabs and CR is blank and is not counted. A byte order
mark at the start of the file belongs to no line.
"""

from __future__ import annotations

import re

__all__ = [
    "BLANK_BYTES",
    "BYTE_ORDER_MARK",
    "ERASED",
    "ERASED_MARK",
    "PERSON_ERASED",
    "LineCounter",
    "is_blank",
    "is_erased",
    "without_mark",
]

#: Bytes of which a blank line may consist, besides its LF.
BLANK_BYTES = b" \t\r"

#: What a line of an erased person holds besides blanks, as JSON: a text, which no resource is (`landing/erased.py`).
ERASED = "erased"
ERASED_MARK = b'"erased"'
#: The reason for which it is excluded.
PERSON_ERASED = "person_erased"

#: Some systems write it at the beginning of UTF-8; it belongs to no line and no document.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# A blank line after another line. One search per chunk keeps counting far above the speed of a disk.
_BLANK_LINE = re.compile(rb"\n[ \t\r]*+(?=\n)")


def without_mark(content: bytes) -> bytes:
    """The content of a file, or its first line, without the byte order mark that may stand before it."""
    return content.removeprefix(BYTE_ORDER_MARK)


def is_blank(line: bytes) -> bool:
    """Whether a line (with or without its LF) counts as blank."""
    return not line.strip(BLANK_BYTES + b"\n")


def is_erased(line: bytes) -> bool:
    """Whether a line (without its end) was that of an erased person. It counts as a line."""
    return line.startswith(ERASED_MARK) and line.rstrip(b" ") == ERASED_MARK


class LineCounter:
    """Counts the lines that are not blank over chunks of any size, in constant memory."""

    def __init__(self) -> None:
        self._complete = 0
        self._open_line_has_content = False
        #: The file's first bytes while they may still become a byte order mark; None afterwards.
        self._start: bytes | None = b""

    def add(self, chunk: bytes) -> None:
        if self._start is not None:
            chunk = self._start + chunk
            if len(chunk) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(chunk):
                self._start = chunk
                return
            self._start = None
            chunk = without_mark(chunk)
        self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        first = chunk.find(b"\n")
        if first < 0:
            self._continue_open_line(chunk)
            return
        self._continue_open_line(chunk[:first])
        self._complete += self._open_line_has_content
        last = chunk.rfind(b"\n")
        self._complete += _whole_lines(chunk, first, last)
        self._open_line_has_content = False
        self._continue_open_line(chunk[last + 1 :])

    def _continue_open_line(self, part: bytes) -> None:
        if not self._open_line_has_content:
            self._open_line_has_content = bool(part.strip(BLANK_BYTES))

    @property
    def lines(self) -> int:
        """Lines so far; the last one counts although it has no LF yet."""
        return self._complete + (self._open_line_has_content or bool(self._start))


def _whole_lines(chunk: bytes, first: int, last: int) -> int:
    """Lines that are not blank between the LF at `first` and the LF at `last`."""
    return chunk.count(b"\n", first + 1, last + 1) - len(_BLANK_LINE.findall(chunk, first, last + 1))
