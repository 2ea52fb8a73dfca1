"""A simulated Epic that tests make hostile: each request may be answered otherwise, each manifest changed.

Requests reach the real simulated server unless `answer` gives another response. Everything is over HTTP on loopback.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.sandbox.config import RegisteredClient, ResourceSource, SandboxConfig
from pipeline.sandbox.server import create_app

CLIENT_ID = "client-1"
KEY = ec.generate_private_key(ec.SECP384R1())
KEY_PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC_PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class ShiftedClock:
    """The real time and what was slept: waiting costs nothing, and the simulated Epic goes by the same clock."""

    def __init__(self, shift: timedelta = timedelta()) -> None:
        self.shift = shift
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.shift += timedelta(seconds=seconds)


@dataclass(frozen=True)
class GivenLines:
    """A group of given lines: type → lines."""

    content: Mapping[str, tuple[bytes, ...]]

    def resource_types(self) -> Collection[str]:
        return tuple(self.content)

    def lines(self, types: Collection[str], first_day: date, day: int) -> Iterator[tuple[str, bytes]]:
        return ((kind, line) for kind in types if kind in self.content for line in self.content[kind])


def small_group(patients: int = 6) -> GivenLines:
    lines = tuple(orjson.dumps({"resourceType": "Patient", "id": f"p{number}"}) for number in range(patients))
    return GivenLines({"Patient": lines})


@dataclass
class HostileEpic:
    """`answer` sees each request with its number (from 1); `edit_manifest` each manifest before it goes out."""

    clock: ShiftedClock
    groups: Mapping[str, ResourceSource] = field(default_factory=lambda: {"g1": small_group()})
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: Callable[[int, Request], Response | None] = lambda number, request: None
    edit_manifest: Callable[[dict[str, Any]], None] = lambda manifest: None
    #: method, path, Authorization header
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    #: Bodies of requests to the token endpoint.
    forms: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "groups": self.groups,
            "clients": (RegisteredClient(CLIENT_ID, (PUBLIC_PEM,)),),
            "clock": self.clock,
            "resources_per_file": 3,
            "retry_after_seconds": 0,
            **self.options,
        }
        self.app: ASGIApp = create_app(SandboxConfig(**values))
        self.state = self.app.state.sandbox  # type: ignore[attr-defined]  # a Starlette application
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.fhir_url = f"{self.url}/api/FHIR/R4"

    @property
    def paths(self) -> list[str]:
        return [f"{method} {path}" for method, path, _ in self.requests]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        self.requests.append((request.method, request.url.path, request.headers.get("authorization", "")))
        other = self.answer(len(self.requests), request)
        if other is not None:
            return await other(scope, receive, send)
        return await self.app(scope, self._overheard(scope, receive), self._edited(send))

    def _overheard(self, scope: Scope, receive: Receive) -> Receive:
        async def overheard() -> Message:
            message = await receive()
            if scope["path"].endswith("/token") and message.get("body"):
                self.forms.append(message["body"])
            return message

        return overheard

    def _edited(self, send: Send) -> Send:
        start: list[Message] = []

        async def edited(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = format_datetime(self.clock.now(), usegmt=True)  # the server's own clock, not the machine's
                message["headers"] = [*message["headers"], (b"date", date.encode())]
                start.append(message)
                return
            if start:
                head, body = start.pop(), message.get("body", b"")
                if body.startswith(b'{"transactionTime"'):
                    manifest = orjson.loads(body)
                    self.edit_manifest(manifest)
                    message["body"] = orjson.dumps(manifest)
                    head["headers"] = [
                        (name, str(len(message["body"])).encode() if name == b"content-length" else value)
                        for name, value in head["headers"]
                    ]
                await send(head)
            await send(message)

        return edited


def is_file(path: str) -> bool:
    """Whether a path is that of a file of an export."""
    return "/BulkRequest/" in path and path.rpartition("/BulkRequest/")[2].count("/") == 1


@contextmanager
def running(epic: HostileEpic) -> Iterator[HostileEpic]:
    server = uvicorn.Server(uvicorn.Config(epic, log_level="critical", timeout_graceful_shutdown=1, date_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [epic.listener]}, daemon=True)
    thread.start()
    try:
        yield epic
    finally:
        server.should_exit = True
        thread.join()


def key_file(folder: Path) -> Path:
    """The client's private key, mode 0600."""
    file = folder / "key.pem"
    file.touch(mode=0o600)
    file.write_bytes(KEY_PEM)
    return file


def site_entry(epic: HostileEpic, folder: Path, **changes: Any) -> dict[str, Any]:
    """The site's settings, as SiteSettings or sites.yaml take them."""
    return {
        "fhir_url": epic.fhir_url,
        "client_id": CLIENT_ID,
        "private_key_file": key_file(folder),
        "groups": list(epic.groups),
        "resource_types": ["Patient"],
        "poll_floor_seconds": 0,
        "download_workers": 1,
        "test_mode": True,
        **changes,
    }
