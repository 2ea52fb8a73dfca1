"""One request and its response as it streams by: its limits, and what the access log says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import httpx

from pipeline.core.errors import UnsafeRemote
from pipeline.extract.http.recording import AccessEntry, Event, Outcome
from pipeline.extract.http.redaction import shown_url

__all__ = ["BOMB_FROM_BYTES", "MAX_LINE_BYTES", "MAX_RATIO", "Exchange", "entry_of"]

#: A body that becomes so many times longer by decompression, and longer than so much, is not valid NDJSON: gzip makes 1 out
#: of 10 to 40, and 1 out of 1000 in a bomb.
MAX_RATIO = 500
BOMB_FROM_BYTES = 64 << 20

#: Lines above the site's max_line_bytes become dead letters; one that never ends is not a file of resources.
MAX_LINE_BYTES = 1 << 30


class RecordedRequest(Protocol):
    """What messages and the access log need to know of a request."""

    @property
    def action(self) -> str: ...

    @property
    def event(self) -> Event: ...

    @property
    def method(self) -> str: ...

    @property
    def resource_type(self) -> str | None: ...


_RequestT = TypeVar("_RequestT", bound=RecordedRequest)


@dataclass
class Exchange(Generic[_RequestT]):
    """A request, its response, and what has come of the body so far."""

    request: _RequestT
    response: httpx.Response
    bytes_received: int = 0
    bytes_passed: int = 0
    #: Of a file: LF seen, and bytes after the last one.
    lines: int = 0
    open_line: int = 0
    #: Of a page of a search.
    entries: int | None = None
    detail: str | None = None

    def received(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.bytes_received += len(chunk)
            yield chunk

    def passed_on(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The decompressed body. Raises UnsafeRemote for a decompression bomb and for a line without an end."""
        for chunk in chunks:
            self.bytes_passed += len(chunk)
            if self.bytes_passed > max(BOMB_FROM_BYTES, MAX_RATIO * self.bytes_received):
                raise UnsafeRemote(
                    f"{self.request.action}: the body becomes more than {MAX_RATIO} times longer by decompression.",
                    "No NDJSON does that. Report it to the site.",
                )
            if self.request.event == "file":
                self._count_lines(chunk)
            yield chunk

    def _count_lines(self, chunk: bytes) -> None:
        last = chunk.rfind(b"\n")
        self.lines += chunk.count(b"\n")
        self.open_line = len(chunk) - last - 1 if last >= 0 else self.open_line + len(chunk)
        if self.open_line > MAX_LINE_BYTES:
            raise UnsafeRemote(f"{self.request.action}: a line is longer than {MAX_LINE_BYTES >> 20} MiB.")

    def entry(self, failure: BaseException | None) -> AccessEntry:
        status = self.response.status_code
        entry = entry_of(self.request, str(self.response.url), failure if status < 400 else None)
        refused: Outcome = "failed" if status >= 500 else "refused"
        is_file = self.request.event == "file" and status < 300
        return replace(
            entry,
            outcome=refused if status >= 400 else entry.outcome,
            status=status,
            resources=self.lines + bool(self.open_line) if is_file else self.entries,
            bytes=self.bytes_passed,
            detail=self.detail,
        )


def entry_of(request: RecordedRequest, url: str, failure: BaseException | None) -> AccessEntry:
    outcome: Outcome = "ok" if failure is None else "blocked" if isinstance(failure, UnsafeRemote) else "failed"
    return AccessEntry(
        request.event, outcome, method=request.method, url=shown_url(url), resource_type=request.resource_type
    )
