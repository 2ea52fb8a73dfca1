"""A simulated Epic over real HTTP: SMART discovery and tokens, Group `$export`, status, files, DELETE.

HTTP only: who gets a token is decided in `tokens.py`, what an export holds in `exports.py`. Behaviour follows Epic's
public documentation and HL7's Bulk Data Access guide (https://hl7.org/fhir/uv/bulkdata/). Every answer passes
through the one application that `create_app` makes; whatever disturbs answers is middleware there.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.core.errors import UsageError
from pipeline.sandbox.config import SandboxConfig
from pipeline.sandbox.exports import ExportDesk, Job
from pipeline.sandbox.fault_player import TOO_RECENTLY, ClosableProtocol, FaultMiddleware, SkewedClock, skew_of
from pipeline.sandbox.faults import FaultTally
from pipeline.sandbox.responses import FhirRefusal, OAuthRefusal, fhir_response, oauth_response, outcome_response
from pipeline.sandbox.rest import RestDesk, rest_routes
from pipeline.sandbox.shaping import ManifestShape
from pipeline.sandbox.sources import EXPORTED_TYPES
from pipeline.sandbox.tokens import ALGORITHMS, AccessToken, TokenOffice

__all__ = ["FHIR_PATH", "RunningSandbox", "SandboxState", "create_app", "serve"]

FHIR_PATH = "/api/FHIR/R4"
TOKEN_PATH = "/oauth2/token"  # noqa: S105 - a path, no secret

_OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
_NDJSON = "application/fhir+ndjson"
_OUTPUT_FORMATS = (_NDJSON, "application/ndjson", "ndjson")
#: A status answer waits this long for files that are nearly written, rather than send the client away.
_PATIENCE_SECONDS = 10.0
_GZIP_WINDOW = 31  # zlib's largest window, with a gzip header
_BLOCK = 256 * 1024
_log = logging.getLogger(__name__)

#: (`before` or `after` the answer, the request)
Watch = Callable[[str, Request], None]


class _Watched:
    def __init__(self, app: ASGIApp, watch: Watch) -> None:
        self._app = app
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._watch("before", Request(scope))
        await self._app(scope, receive, send)
        self._watch("after", Request(scope))


@dataclass(frozen=True)
class SandboxState:
    """What the running application knows; `app.state.sandbox`."""

    config: SandboxConfig
    desk: ExportDesk
    tokens: TokenOffice
    manifests: ManifestShape
    faults: FaultTally


def create_app(config: SandboxConfig) -> Starlette:
    """The whole simulated server as one ASGI application."""
    clock = SkewedClock(config.clock, skew_of(config.faults))
    tokens = TokenOffice(config.clients, clock, config.token_seconds)
    tally = FaultTally(config.faults)
    state = SandboxState(config, ExportDesk(config), tokens, ManifestShape(tally), tally)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(state.desk.close)

    job = FHIR_PATH + "/BulkRequest/{job}"
    app = Starlette(
        routes=[
            Route(f"{FHIR_PATH}/.well-known/smart-configuration", _smart_configuration),
            Route(f"{FHIR_PATH}/metadata", _metadata),
            Route(FHIR_PATH + "/Group/{group}/$export", _kick_off),
            Route(FHIR_PATH + "/Group/{group}", _group),
            Route(job, _status, methods=["GET"]),
            Route(job, _delete, methods=["DELETE"]),
            Route(job + "/{file}", _file),
            Route(TOKEN_PATH, _token, methods=["POST"]),
            Route("/sandbox/clock", _clock, methods=["GET", "POST"]),
            *rest_routes(FHIR_PATH, RestDesk(config, state.desk), _authorized),  # last: they match any type
        ],
        exception_handlers={FhirRefusal: _refuse, OAuthRefusal: _refuse, HTTPException: _refuse, Exception: _failed},
        lifespan=lifespan,
    )
    app.state.sandbox = state
    if config.faults:

        def find_file(path: str) -> tuple[int, str] | None:
            folder, _, name = path.rpartition("/")
            return state.desk.place(folder.rpartition("/")[2], name)

        app.add_middleware(FaultMiddleware, tally=tally, clock=clock, find_file=find_file, end_tokens=tokens.revoke_all)
    return app


def serve(
    config: SandboxConfig, host: str = "127.0.0.1", port: int = 0, ready: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; returns after a clean shutdown. `ready` gets the base URL once connections are
    accepted. Port 0 takes a free one. Raises UsageError when the port is taken.
    """
    listener = _listen(host, port)
    server = _uvicorn(config)
    with _signals_end_quietly():
        if ready is not None:
            ready(_url_of(listener))
        server.run(sockets=[listener])


class RunningSandbox:
    """Context manager: the simulated Epic on a free loopback port, in a thread of this process.

    `base_url` is the server's root, `fhir_url` the FHIR base, `port` what it listens on, `state` what the application
    knows. `watch` is called for every request before it is looked at and after it was answered.
    """

    def __init__(self, config: SandboxConfig, port: int = 0, watch: Watch | None = None) -> None:
        self._listener = _listen("127.0.0.1", port)
        self._server = _uvicorn(config, watch)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="sandbox", daemon=True
        )
        self.base_url = _url_of(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self.fhir_url = self.base_url + FHIR_PATH
        self.token_url = self.base_url + TOKEN_PATH
        self.state: SandboxState = self._server.config.app.state.sandbox  # type: ignore[union-attr]  # always our own app

    def __enter__(self) -> RunningSandbox:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=30)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that already queues connections: nobody has to wait until the server's thread is up."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"The sandbox cannot listen on {host}:{port} ({error.strerror}).",
            "Another program may be using the port: choose another with --port, or 0 for any free one.",
        ) from error
    listener.listen(128)
    return listener


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _uvicorn(config: SandboxConfig, watch: Watch | None = None) -> uvicorn.Server:
    app = create_app(config)
    if watch is not None:
        app.add_middleware(_Watched, watch=watch)
    disturbed: dict[str, Any] = {"http": ClosableProtocol, "date_header": False} if config.faults else {}
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, **disturbed)
    )


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn ends on a signal and then raises it again for the handlers that stood before: let these be silent."""
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


def _state(request: Request) -> SandboxState:
    state: SandboxState = request.app.state.sandbox
    return state


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, OAuthRefusal):
        _log.warning("Token request refused: %s (%s)", error.error, error.reason)
        return oauth_response({"error": error.error, "error_description": None}, 400)
    if isinstance(error, HTTPException):
        code = "not-supported" if error.status_code == 405 else "not-found"
        return outcome_response(FhirRefusal(error.status_code, code, error.detail, dict(error.headers or {})))
    assert isinstance(error, FhirRefusal)
    return outcome_response(error)


async def _failed(_: Request, error: Exception) -> Response:
    return outcome_response(FhirRefusal(500, "exception", f"The sandbox failed ({type(error).__name__})."))


async def _smart_configuration(request: Request) -> Response:
    return oauth_response(
        {
            "token_endpoint": _base(request) + TOKEN_PATH,
            "token_endpoint_auth_methods_supported": ["private_key_jwt"],
            "token_endpoint_auth_signing_alg_values_supported": list(ALGORITHMS),
            "grant_types_supported": ["client_credentials"],
            "scopes_supported": ["system/*.read", "system/*.rs"],
            "capabilities": ["client-confidential-asymmetric", "permission-v1", "permission-v2"],
        }
    )


async def _metadata(request: Request) -> Response:
    state = _state(request)
    types = sorted({kind for source in state.config.groups.values() for kind in source.resource_types()} | {"Group"})
    interactions = [{"code": "read"}, {"code": "search-type"}]
    resources: list[dict[str, Any]] = [{"type": kind, "interaction": interactions} for kind in types]
    definition = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/group-export"
    for resource in resources:
        if resource["type"] == "Group":
            resource["operation"] = [{"name": "group-export", "definition": definition}]
    return fhir_response(
        {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": state.desk.clock.now().isoformat(timespec="seconds"),
            "kind": "instance",
            "software": {"name": "Simulated Epic"},
            "implementation": {
                "description": "Simulated Epic with synthetic patients",
                "url": _base(request) + FHIR_PATH,
            },
            "fhirVersion": "4.0.1",
            "format": ["application/fhir+json"],
            "instantiates": ["http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"],
            "rest": [{"mode": "server", "security": _security(request), "resource": resources}],
        }
    )


def _security(request: Request) -> dict[str, Any]:
    """Where tokens are had, as sites without a SMART configuration state it."""
    token = {"url": "token", "valueUri": _base(request) + TOKEN_PATH}
    return {"extension": [{"url": _OAUTH_URIS, "extension": [token]}]}


async def _group(request: Request) -> Response:
    """The Group itself, without its members: no kick-off, and nothing of the window."""
    token = _authorized(request)
    group = request.path_params["group"]
    if not token.reads("Group"):
        raise FhirRefusal(403, "forbidden", "The client's scopes do not cover: Group.")
    if group not in _state(request).config.groups:
        raise FhirRefusal(404, "not-found", "There is no Group with this id, or the client may not see it.")
    return fhir_response({"resourceType": "Group", "id": group, "type": "person", "actual": True, "name": group})


async def _token(request: Request) -> Response:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise OAuthRefusal("invalid_request", "the body must be application/x-www-form-urlencoded")
    form = await _form(request)
    return oauth_response(_state(request).tokens.grant(form, _base(request) + TOKEN_PATH))


async def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True))


def _authorized(request: Request) -> AccessToken:
    token = _state(request).tokens.check(request.headers.get("authorization"))
    if token is None:
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise FhirRefusal(401, "login", "The access token is missing, unknown or expired.", challenge)
    return token


async def _kick_off(request: Request) -> Response:
    token = _authorized(request)
    state, group = _state(request), request.path_params["group"]
    if group not in state.config.groups:
        raise FhirRefusal(404, "not-found", "There is no Group with this id, or the client may not see it.")
    types = _check_types(request, token)
    if state.desk.too_recent(token.client_id, group):
        raise FhirRefusal(state.config.too_recently_status, "business-rule", TOO_RECENTLY)
    job = state.desk.kick_off(token.client_id, group, types, str(request.url), _since(request))
    return Response(status_code=202, headers={"Content-Location": _job_url(request, job)})


_KICK_OFF_PARAMETERS = {"_type", "_outputFormat", "_since"}


def _since(request: Request) -> datetime | None:
    """`_since`, where it is known; None: everything is exported."""
    given = request.query_params.get("_since")
    if given is None or not _state(request).config.knows_since:
        return None
    try:
        since = datetime.fromisoformat(given)
    except ValueError:
        since = None
    if since is None or since.tzinfo is None:
        raise FhirRefusal(400, "value", "_since is not a valid instant.")
    return since


def _check_types(request: Request, token: AccessToken) -> list[str]:
    """The types of `_type`, once the headers and parameters of a kick-off are in order."""
    accepted = request.headers.get("accept", "").lower()
    if "application/fhir+json" not in accepted:
        raise FhirRefusal(400, "invalid", "The header Accept: application/fhir+json is required.")
    preferences = {part.strip().lower() for part in request.headers.get("prefer", "").split(",")}
    if "respond-async" not in preferences:
        raise FhirRefusal(400, "invalid", "The header Prefer: respond-async is required.")
    known = {"_type", "_outputFormat"} if _state(request).config.knows_since is None else _KICK_OFF_PARAMETERS
    unknown = sorted(set(request.query_params) - known)
    if unknown and "handling=lenient" not in preferences:
        raise FhirRefusal(400, "not-supported", f"Not supported: {', '.join(unknown)}.")
    if request.query_params.get("_outputFormat", _NDJSON).replace(" ", "+") not in _OUTPUT_FORMATS:
        raise FhirRefusal(400, "not-supported", f"_outputFormat must be {_NDJSON}.")
    asked = ",".join(request.query_params.getlist("_type")).split(",")
    types = list(dict.fromkeys(kind.strip() for kind in asked if kind.strip()))
    if not types:
        raise FhirRefusal(400, "required", "The parameter _type is required.")
    source = _state(request).config.groups[request.path_params["group"]]
    if wrong := [kind for kind in types if kind not in EXPORTED_TYPES and kind not in source.resource_types()]:
        raise FhirRefusal(400, "not-supported", f"_type names what cannot be exported: {', '.join(wrong)}.")
    if refused := [kind for kind in types if not token.reads(kind)]:
        raise FhirRefusal(403, "forbidden", f"The client's scopes do not cover: {', '.join(refused)}.")
    return types


def _job_url(request: Request, job: Job) -> str:
    return f"{_base(request)}{FHIR_PATH}/BulkRequest/{job.id}"


def _own_job(request: Request) -> Job:
    token = _authorized(request)
    job = _state(request).desk.find(request.path_params["job"], token.client_id)
    if job is None:
        raise FhirRefusal(404, "not-found", "There is no such bulk request.")
    return job


async def _status(request: Request) -> Response:
    job = _own_job(request)
    state = _state(request)
    writing = state.desk.poll(job)
    files = None
    if writing is not None:
        try:
            files = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(writing)), _PATIENCE_SECONDS)
        except TimeoutError:
            files = None
    if files is None:
        headers = {
            "X-Progress": f"in progress, asked {job.polls} times",
            "Retry-After": str(state.config.retry_after_seconds),
        }
        return _with_export_status(state, Response(status_code=202, headers=headers))
    state.desk.complete(job, files)
    return _with_export_status(state, _manifest(request, job))


def _with_export_status(state: SandboxState, answer: Response) -> Response:
    if state.manifests.separate_status:
        answer.headers["X-Export-Status"] = str(answer.status_code)
        answer.status_code = 200
    return answer


def _manifest(request: Request, job: Job) -> Response:
    url = _job_url(request, job)
    lists: dict[str, list[dict[str, Any]]] = {"output": [], "error": [], "deleted": []}
    for file in job.files or []:
        entry = {"type": file.resource_type, "url": f"{url}/{file.name}", "count": file.count}
        lists[file.category].append(entry)
    if not lists["deleted"]:
        del lists["deleted"]
    manifest = {
        "transactionTime": job.accepted.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "request": job.request,
        "requiresAccessToken": True,
        **lists,
    }
    page = request.query_params.get("page", "1")
    shaped = _state(request).manifests.shaped(manifest, url, int(page) if page.isdecimal() and page != "0" else 1)
    return Response(orjson.dumps(shaped), media_type="application/json")


async def _delete(request: Request) -> Response:
    job = _own_job(request)
    _state(request).desk.delete(job)
    return Response(status_code=202)


async def _file(request: Request) -> Response:
    job = _own_job(request)
    path = _state(request).desk.path(job, request.path_params["file"])
    if path is None:
        raise FhirRefusal(404, "not-found", "This bulk request has no such file.")
    if "range" not in request.headers and _takes_gzip(request.headers.get("accept-encoding", "")):
        headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return StreamingResponse(_compressed(path), headers=headers, media_type=_NDJSON)
    return FileResponse(path, media_type=_NDJSON, headers={"Vary": "Accept-Encoding"})


def _takes_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.lower().split(","):
        name, _, parameters = part.strip().partition(";")
        if name.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _compressed(path: Path) -> Iterator[bytes]:
    compressor = zlib.compressobj(level=1, wbits=_GZIP_WINDOW)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            if compressed := compressor.compress(block):
                yield compressed
    yield compressor.flush()


async def _clock(request: Request) -> Response:
    """GET shows the sandbox's time, POST {"advance_seconds": n} moves it on. Loopback only."""
    if request.client is None or request.client.host not in ("127.0.0.1", "::1"):
        raise FhirRefusal(403, "forbidden", "The sandbox's clock is moved from its own machine only.")
    desk = _state(request).desk
    if request.method == "POST":
        desk.advance(await _seconds(request))
    return oauth_response({"now": desk.clock.now().isoformat(), "day": desk.day})


async def _seconds(request: Request) -> float:
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError:
        body = None
    seconds = body.get("advance_seconds") if isinstance(body, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 10 * 366 * 86_400:
        raise FhirRefusal(400, "invalid", 'The body must be {"advance_seconds": n} with n from 0 to ten years.')
    return float(seconds)
