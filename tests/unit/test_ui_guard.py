"""The guard before Dagster's UI, by raw requests to a real server on loopback: what browsers and others may send."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import load_settings
from pipeline.orchestration.ui_guard import UiGuard
from pipeline.orchestration.ui_services import guarded_command

QUERY = "/graphql?query=%7Bversion%7D"
MUTATION = "/graphql?query=mutation%7Bx%7D"


async def _reached(request: Request) -> PlainTextResponse:
    return PlainTextResponse("reached")


async def _socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    routes = [
        Route("/{path:path}", _reached, methods=["GET", "POST", "PUT", "DELETE"]),
        WebSocketRoute("/graphql", _socket),
    ]
    app = UiGuard(Starlette(routes=routes), ("localhost", "127.0.0.1", "[::1]", "dagster.example"))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(10)


def _status(port: int, request: str, *fields: str, host: str | None = "127.0.0.1:{port}") -> int:
    """Of a request that is written byte for byte; {port} stands for the server's."""
    lines = [
        f"{request} HTTP/1.1",
        *([f"Host: {host}"] if host is not None else []),
        *fields,
        *([] if KEY in fields else ["Connection: close"]),
        "",
        "",
    ]
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall("\r\n".join(lines).replace("{port}", str(port)).encode())
        return int(connection.makefile("rb").readline().split()[1])


JSON = "Content-Type: application/json"
OWN = "Origin: http://127.0.0.1:{port}"
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", KEY)


@pytest.mark.parametrize(
    ("request_line", "fields"),
    [
        ("GET /", ()),
        ("GET /runs", ("Sec-Fetch-Site: none",)),
        ("GET /assets/main.js", ("Sec-Fetch-Site: same-origin", "Referer: http://127.0.0.1:{port}/runs")),
        ("GET /graphql", ("Accept: text/html",)),
        ("GET /server_info?query=x", ()),
        ("POST /graphql", (JSON, OWN, "Sec-Fetch-Site: same-origin")),
        ("POST /graphql", ("Content-Type: Application/JSON; charset=utf-8", OWN)),
        ("POST /graphql", (JSON,)),  # a program
        ("POST /graphql", (JSON, "Origin: https://127.0.0.1:{port}")),  # behind a proxy that ends TLS
    ],
    ids=str,
)
def test_own_pages_and_programs_get_through(port: int, request_line: str, fields: tuple[str, ...]) -> None:
    assert _status(port, request_line, *fields) == 200


@pytest.mark.parametrize("host", ["localhost:{port}", "LOCALHOST", "[::1]:{port}", "dagster.example", "127.0.0.1"])
def test_every_allowed_host_gets_through(port: int, host: str) -> None:
    assert _status(port, "GET /", host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        None, "", "evil.example", "127.0.0.1.evil.example", "evil.example:{port}", "127.0.0.1@evil.example", "127.0.0.2",
        "localhost.", "localhost:evil", "localhost/evil", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433",
    ],
    ids=str,
)  # fmt: skip
def test_other_hosts_do_not(port: int, host: str | None) -> None:
    assert _status(port, "GET /", host=host) in (400, 421)
    assert _status(port, "POST /graphql", JSON, host=host) in (400, 421)


def test_two_hosts_do_not(port: int) -> None:
    assert _status(port, "GET /", "Host: 127.0.0.1") == 400


FOREIGN = (
    ("Sec-Fetch-Site: cross-site",),
    ("Sec-Fetch-Site: same-site",),
    ("Sec-Fetch-Site: CROSS-SITE",),
    ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"),
    ("Origin: http://evil.example",),
    ("Origin: http://127.0.0.1:1",),
    ("Origin: http://127.0.0.1",),
    ("Origin: http://localhost:{port}",),
    ("Origin: null",),
    ("Origin: ",),
    ("Origin: file://",),
    ("Origin: http://127.0.0.1:{port}.evil.example",),
    ("Origin: http://127.0.0.1:{port}@evil.example",),
    (OWN, "Origin: http://evil.example"),
    ("Referer: http://evil.example/127.0.0.1:{port}",),
)


@pytest.mark.parametrize("fields", FOREIGN, ids=str)
def test_other_pages_do_not(port: int, fields: tuple[str, ...]) -> None:
    assert _status(port, "GET /", *fields) == 403
    assert _status(port, "POST /graphql", JSON, *fields) == 403
    assert _status(port, "GET /graphql", *UPGRADE, *fields) in (400, 403)  # 400: the server itself, of two Origins
    assert _status(port, "OPTIONS /graphql", *fields) == 403


def test_a_web_socket_of_the_own_page_gets_through(port: int) -> None:
    assert _status(port, "GET /graphql", *UPGRADE, OWN) == 101
    assert _status(port, "GET /graphql", *UPGRADE, OWN, host="evil.example") == 403


@pytest.mark.parametrize(
    "address",
    [
        MUTATION, QUERY, "/graphql?%71uery=mutation%7Bx%7D", "/%67raphql?query=x", "/graphql/?query=x", "/GraphQL?query=x",
        "/prefix/graphql?query=x", "/graphql?a=b&query=x", "/graphql?query", "/graphql?query=&query=mutation",
    ],
)  # fmt: skip
def test_nothing_is_changed_by_get(port: int, address: str) -> None:
    assert _status(port, f"GET {address}", "Accept: */*") == 405
    assert _status(port, f"HEAD {address}") == 405
    assert _status(port, f"GET {address}", "Accept: text/html") == 405


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("Content-Type: text/plain",),
        ("Content-Type: text/plain; application/json",),
        ("Content-Type: application/x-www-form-urlencoded",),
        ("Content-Type: multipart/form-data; boundary=application/json",),
        ("Content-Type: application/graphql",),
        (JSON, "Content-Type: text/plain"),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/graphql", MUTATION, "/report_asset_materialization/a"])
def test_what_a_form_can_send_changes_nothing(port: int, path: str, fields: tuple[str, ...]) -> None:
    assert _status(port, f"POST {path}", *fields) == 415


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_do_not(port: int, method: str) -> None:
    assert _status(port, f"{method} /graphql", JSON) == 405


def test_hosts_are_a_setting() -> None:
    hosts = load_settings({"EPIC_OMOP_HOME": "/nowhere", "EPIC_OMOP_UI_HOSTS": "dagster.example, 10.0.0.1"}).ui_hosts
    assert hosts == ("dagster.example", "10.0.0.1")
    assert "localhost" in load_settings({"EPIC_OMOP_HOME": "/nowhere"}).ui_hosts
    for wrong in ("http://dagster.example", "a:3000", "*", "a/b"):
        with pytest.raises(ConfigurationError):
            load_settings({"EPIC_OMOP_HOME": "/nowhere", "EPIC_OMOP_UI_HOSTS": wrong})


def test_the_webserver_of_dagster_dev_becomes_ours() -> None:
    assert guarded_command(["python", "-m", "dagster_webserver", "--port", "1"]) == [
        *("python", "-m", "pipeline.orchestration.webserver"),
        *("--port", "1"),
    ]
    assert guarded_command(["python", "-m", "dagster._daemon", "run"]) == ["python", "-m", "dagster._daemon", "run"]
    with pytest.raises(RuntimeError):
        guarded_command(["dagster-webserver", "--port", "1"])
