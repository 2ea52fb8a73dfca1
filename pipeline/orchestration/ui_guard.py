"""An ASGI guard before Dagster's UI, which has no login and takes mutations from any page of the operator's browser.

It lets through what this machine's own pages and programs ask: a known Host (against DNS rebinding), no request that another
origin makes (Sec-Fetch-Site, Origin, Referer; a WebSocket as well), and no change by other than a POST of JSON, which no
page can send to another origin without asking first. What a request means is Dagster's; who a user is, is not known here:
put a proxy with a login before it where others reach the port. Rules: docs/security.md, "Dagster's UI".
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["UiGuard"]

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OWN_SITES = ("same-origin", "none")
_SAFE_METHODS = ("GET", "HEAD")
#: RFC 6455: the peer breaks a rule. Before the handshake is answered a server turns it into 403.
_POLICY_VIOLATION = 1008


@dataclass(frozen=True)
class Refusal:
    status: int
    reason: str


class UiGuard:
    """Wraps an ASGI app. `hosts`: names and addresses, without a port, by which the UI is reached."""

    def __init__(self, app: App, hosts: tuple[str, ...]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower().strip("[]") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        _log.warning("A request to Dagster's UI was refused: %s", refusal.reason)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refusal.reason})
            return
        body = f"epic-omop refuses this request: {refusal.reason}\n".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = _Headers(scope)
        return (
            self._foreign_host(headers)
            or _foreign_page(headers)
            or (_change_by_other_means(scope, headers) if scope["type"] == "http" else None)
        )

    def _foreign_host(self, headers: _Headers) -> Refusal | None:
        named = headers.every("host")
        if len(named) != 1:
            return Refusal(400, "it has no Host, or several.")
        host = _host_and_port(named[0])
        if host is None or host[0] not in self._hosts:
            return Refusal(421, "its Host is not one of this UI (EPIC_OMOP_UI_HOSTS).")
        return None


class _Headers:
    """Header fields of a request as text; a field that comes twice is seen twice."""

    def __init__(self, scope: Scope) -> None:
        self._fields = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]

    def every(self, name: str) -> list[str]:
        return [value.strip() for field, value in self._fields if field == name]


def _foreign_page(headers: _Headers) -> Refusal | None:
    """Another site, or another port of this machine: browsers say of every request who made it."""
    if any(value.lower() not in _OWN_SITES for value in headers.every("sec-fetch-site")):
        return Refusal(403, "a page of another origin made it. Open the UI by its address, not by a link.")
    own = _host_and_port(headers.every("host")[0])
    # An address that a user typed or a program asked for has no Origin. `null` is that of a sandboxed or local page.
    if any(_origin(value) != own for value in headers.every("origin")):
        return Refusal(403, "its Origin is another.")
    # Browsers of before 2020 and 2023 say no more than this, and only of a GET; a page can leave it out there.
    origins = headers.every("origin") or headers.every("sec-fetch-site")
    if not origins and any(_origin(value) != own for value in headers.every("referer")):
        return Refusal(403, "its Referer is of another origin.")
    return None


def _change_by_other_means(scope: Scope, headers: _Headers) -> Refusal | None:
    """Dagster reads a mutation from the address too, and takes every content type that has `application/json` in it."""
    is_graphql = "graphql" in scope["path"].lower().split("/")
    if scope["method"] in _SAFE_METHODS:
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, separator="&")
        if is_graphql and "query" in query:
            return Refusal(405, "GraphQL is asked by POST.")
        return None
    if scope["method"] != "POST":
        return Refusal(405, "only GET and POST are used here.")
    types = [value.partition(";")[0].strip().lower() for value in headers.every("content-type")]
    if types != ["application/json"]:
        return Refusal(415, "what is sent must be JSON (Content-Type: application/json).")
    return None


def _host_and_port(value: str) -> tuple[str, int | None] | None:
    """`localhost:3000` → its parts, lower case, an IPv6 address without brackets; None where it cannot be read."""
    try:
        parts = urlsplit(f"//{value}")
        if parts.netloc != value or parts.hostname is None or "@" in value:
            return None
        return parts.hostname.lower(), parts.port
    except ValueError:
        return None


def _origin(value: str) -> tuple[str, int | None] | None:
    """Host and port of an Origin or Referer. A proxy may have ended TLS, so that its scheme says nothing here."""
    scheme, _, rest = value.partition("://")
    return _host_and_port(rest.partition("/")[0]) if scheme.lower() in ("http", "https") else None
