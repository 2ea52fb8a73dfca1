"""Whether what comes as a file of resources is one, seen while its bytes stream by.

A server's error page, a JSON array, another encoding or a gzip inside a gzip all have lines, and none of them is a
resource. One line that is of the file's type is enough: the others are judged one by one when they are loaded.
"""

from __future__ import annotations

import re

import orjson

from pipeline.fhir.lines import is_blank, without_mark

__all__ = ["ContentCheck"]


#: A line beyond this is judged by its beginning, so that memory does not grow with it.
_MOST_LINE_BYTES = 16 << 20


class ContentCheck:
    """Looks for a line that is a resource of the type; of None, for any JSON object. Stops looking when it has one.

    A file that begins with `[` is a JSON array: none of its lines counts, although its last one may read like a resource.
    """

    def __init__(self, resource_type: str | None) -> None:
        self.found = False
        self._type = resource_type
        self._open_line = bytearray()
        self._skips = False
        self._is_array: bool | None = None
        pattern = re.escape(resource_type) if resource_type else "[A-Za-z]+"
        self._names_type = re.compile(rb'\{.*?"resourceType"\s*:\s*"%s"' % pattern.encode(), re.DOTALL)

    def add(self, chunk: bytes) -> None:
        """The next bytes of the file."""
        if self.found:
            return
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._open_line += line
            self.end_line()
            if self.found:
                return
        self._open_line += rest
        if len(self._open_line) > _MOST_LINE_BYTES:
            if not self._skips:
                line = self._plain(bytes(self._open_line))
                self.found = not self._is_in_array(line) and self._names_type.match(line) is not None
            self._open_line.clear()
            self._skips = True

    def end_line(self) -> None:
        """The line so far is whole: at the end of the file, and where bytes are passed over."""
        if not self._skips:
            self.found |= self._is_of_type(self._plain(bytes(self._open_line)))
        self._open_line.clear()
        self._skips = False

    def _is_in_array(self, line: bytes) -> bool:
        if self._is_array is None and not is_blank(line):
            self._is_array = line.startswith(b"[")
        return bool(self._is_array)

    def _plain(self, line: bytes) -> bytes:
        return without_mark(line).lstrip(b" \t\r")

    def _is_of_type(self, line: bytes) -> bool:
        if is_blank(line) or self._is_in_array(line) or not line.startswith(b"{"):
            return False
        try:
            resource = orjson.loads(line)
        except orjson.JSONDecodeError:
            return False
        return self._type is None or resource.get("resourceType") == self._type
