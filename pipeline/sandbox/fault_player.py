"""Plays the faults of single requests: answers, connections and bodies, before and behind the application.

What files and manifests hold is shaped in `shaping.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.core.clock import Clock
from pipeline.sandbox.faults import (
    ClockSkew,
    CutBody,
    CutGzip,
    EndTokens,
    Exchange,
    Fault,
    FaultTally,
    NoGzip,
    NoRanges,
    NoResponse,
    NotNdjson,
    Redirect,
    ResponseFault,
    SmallPieces,
    TooRecently,
)
from pipeline.sandbox.responses import FhirRefusal, outcome_response

__all__ = ["TOO_RECENTLY", "ClosableProtocol", "FaultMiddleware", "SkewedClock", "skew_of"]

TOO_RECENTLY = "Error normalizing bulk request: this client has requested this Group too recently."

_FILE_PATH = re.compile(r".*/BulkRequest/[^/]+/[^/]+")

_F = TypeVar("_F")

#: (path of a file) → its number in the manifest and its type; None: no such file.
FindFile = Callable[[str], tuple[int, str] | None]


class SkewedClock:
    """A clock that is so many seconds ahead of another."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._ahead = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return self._clock.now() + self._ahead

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)


def skew_of(faults: Sequence[Fault]) -> float:
    """Seconds by which the server's clock is ahead."""
    return sum(fault.seconds for fault in faults if isinstance(fault, ClockSkew))


class ClosableProtocol(H11Protocol):
    """uvicorn's protocol, which shows its connection to the application: only so can an answer be left out."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the parent
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class FaultMiddleware:
    """ASGI middleware. `end_tokens` makes every token invalid; `clock` is the server's own, skewed one."""

    def __init__(
        self,
        app: ASGIApp,
        tally: FaultTally,
        *,
        clock: Clock,
        find_file: FindFile,
        end_tokens: Callable[[], None],
    ) -> None:
        self._app = app
        self._clock = clock
        self._find_file = find_file
        self._end_tokens = end_tokens
        unheard = {NoRanges: b"range", NoGzip: b"accept-encoding"}
        self._unheard = {unheard[type(fault)] for fault in tally.faults if isinstance(fault, NoRanges | NoGzip)}
        self._tally = tally

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = self._dated(send)
        exchange = _exchange(scope["method"], scope["path"])
        file = self._find_file(scope["path"]) if exchange == "file" else None
        if self._due(EndTokens, exchange, file):
            self._end_tokens()
        answer = self._answer(exchange, file)
        if answer is not None:
            await answer(scope, receive, send)
            return
        silent = self._due(NoResponse, exchange, file)
        if silent is not None and not silent.processed:
            await _close(scope, receive)
            return
        scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in self._unheard]}
        if silent is not None:
            await self._app(scope, receive, _nowhere)
            await _close(scope, receive)
            return
        await self._app(scope, receive, self._disturbed(scope, receive, send, file) if exchange == "file" else send)

    def _due(self, kind: type[_F], exchange: Exchange | None, file: tuple[int, str] | None) -> _F | None:
        """The first fault of that kind whose turn it is; it is counted as played."""
        found = self._tally.take(lambda fault: isinstance(fault, kind) and _concerns(fault, exchange, file), most=1)
        return found[0] if found and isinstance(found[0], kind) else None

    def _answer(self, exchange: Exchange | None, file: tuple[int, str] | None) -> Response | None:
        return self._page(exchange, file) or self._status(exchange, file)

    def _page(self, exchange: Exchange | None, file: tuple[int, str] | None) -> Response | None:
        if refusal := self._due(TooRecently, exchange, file):
            return outcome_response(FhirRefusal(refusal.status, "business-rule", TOO_RECENTLY))
        if redirect := self._due(Redirect, exchange, file):
            return Response(status_code=302, headers={"Location": redirect.location})
        if page := self._due(NotNdjson, exchange, file):
            return Response(_no_ndjson(page.how, file[1] if file else "Patient"))
        return None

    def _status(self, exchange: Exchange | None, file: tuple[int, str] | None) -> Response | None:
        fault = self._due(ResponseFault, exchange, file)
        if fault is None:
            return None
        headers = {"Retry-After": self._retry_after(fault.retry_after)} if fault.retry_after is not None else {}
        if fault.status < 400:
            return Response(status_code=fault.status, headers=headers)
        if fault.status == 401:
            headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
        if fault.code is None:
            return Response(status_code=fault.status, headers=headers)
        return outcome_response(FhirRefusal(fault.status, fault.code, fault.text, headers))

    def _retry_after(self, form: str) -> str:
        now = self._clock.now()
        forms = {
            "date": format_datetime(now + timedelta(minutes=1), usegmt=True),
            "past": format_datetime(now - timedelta(hours=1), usegmt=True),
            "epoch": f"{now.timestamp() + 60:.0f}",
            "epoch-milliseconds": f"{(now.timestamp() + 60) * 1000:.0f}",
        }
        return forms.get(form, form)

    def _dated(self, send: Send) -> Send:
        """The Date header by the server's own clock; uvicorn's is switched off."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = format_datetime(self._clock.now(), usegmt=True).encode()
                message = {**message, "headers": [*message["headers"], (b"date", date)]}
            await send(message)

        return dated

    def _disturbed(self, scope: Scope, receive: Receive, send: Send, file: tuple[int, str] | None) -> Send:
        """Sends a file's body with what is due for it."""
        if cut := self._due(CutBody, "file", file):
            return _cutting(send, cut.bytes, lambda: _close(scope, receive))
        if pieces := self._due(SmallPieces, "file", file):
            return _in_pieces(send, pieces.bytes)
        compressed = any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])
        if compressed and (shorter := self._due(CutGzip, "file", file)):
            return _shortening(send, shorter.bytes)
        return send


def _exchange(method: str, path: str) -> Exchange | None:
    if method == "DELETE":
        return "delete"
    if path.endswith("/.well-known/smart-configuration"):
        return "discovery"
    if path.endswith("/token"):
        return "token"
    if path.endswith("/$export"):
        return "kick-off"
    if _FILE_PATH.fullmatch(path):
        return "file"
    return "status" if "/BulkRequest/" in path else None


def _concerns(fault: object, exchange: Exchange | None, file: tuple[int, str] | None) -> bool:
    at = getattr(fault, "at", "kick-off" if isinstance(fault, TooRecently) else "file")
    if at != exchange:
        return False
    number, kind = getattr(fault, "number", None), getattr(fault, "type", None)
    if number is None and kind is None:
        return True
    return file is not None and number in (None, file[0]) and kind in (None, file[1])


def _no_ndjson(how: str, resource_type: str) -> bytes:
    resource = f'{{"resourceType":"{resource_type}","id":"1"}}'
    if how == "html":
        return b"<!doctype html>\n<html><body>We are back at 6 am.</body></html>\n"
    if how == "array":
        return f"[{resource}]".encode()
    return resource.encode("utf-16") if how == "utf-16" else gzip.compress(resource.encode())


async def _nowhere(_: Message) -> None:
    """Where an answer goes that nobody hears."""


async def _close(scope: Scope, receive: Receive) -> None:
    """End the connection; what was written before still arrives."""
    scope["state"]["transport"].close()
    while (await receive())["type"] != "http.disconnect":
        pass


def _cutting(send: Send, limit: int, close: Callable[[], Any]) -> Send:
    sent = 0

    async def cut(message: Message) -> None:
        nonlocal sent
        if message["type"] != "http.response.body" or sent > limit:
            if sent <= limit:
                await send(message)
            return
        body = message.get("body", b"")
        if sent + len(body) <= limit and message.get("more_body"):
            sent += len(body)
            await send(message)
            return
        await send({**message, "body": body[: limit - sent], "more_body": True})
        sent = limit + 1
        await close()

    return cut


def _in_pieces(send: Send, size: int) -> Send:
    async def cut_up(message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or len(body) <= size:
            await send(message)
            return
        for start in range(0, len(body), size):
            last = start + size >= len(body)
            await send({**message, "body": body[start : start + size], "more_body": not last or message["more_body"]})

    return cut_up


def _shortening(send: Send, missing: int) -> Send:
    """Holds back the last bytes of a body of unknown length, and ends it properly without them."""
    waiting = bytearray()

    async def shorten(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        waiting.extend(message.get("body", b""))
        ready, rest = bytes(waiting[:-missing]), bytes(waiting[-missing:])
        waiting[:] = rest
        await send({**message, "body": ready})

    return shorten
