"""Exports under faults that a test makes request by request: files that are cut, lost or wrongly counted.

Faults by configuration are in `test_faults.py`, killed processes in `test_killed_exports.py`.

The server is the simulated Epic with a disturbance before it, which a test sets request by request. In each case the
run ends with every line landed once, or stops with a clear error and goes on where it stood.
"""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.core.errors import EpicOmopError, LandingError, RemoteUnavailable, UnsafeRemote
from pipeline.core.settings import SiteSettings, load_settings, register_site
from pipeline.extract import bulk
from pipeline.landing.reading import open_landed
from pipeline.landing.store import LandedExport
from pipeline.sandbox.config import RegisteredClient, SandboxConfig
from pipeline.sandbox.server import create_app
from pipeline.warehouse import export_jobs
from pipeline.warehouse.runtime import Runtime

TYPES = ("Patient", "Observation")
KEY = ec.generate_private_key(ec.SECP384R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
CONTENT = tuple((kind, orjson.dumps({"resourceType": kind, "id": f"{kind}-{n}"})) for kind in TYPES for n in range(6))
ALL_LINES = sorted(line for _, line in CONTENT)


class ShiftedClock:
    def __init__(self) -> None:
        self.shift = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def sleep(self, seconds: float) -> None:
        self.shift += timedelta(seconds=seconds)


class Group:
    def resource_types(self) -> Collection[str]:
        return TYPES

    def lines(self, types: Collection[str], first_day: date, day: int) -> Iterator[tuple[str, bytes]]:
        return iter(CONTENT)


@dataclass
class DisturbedEpic:
    """The simulated Epic; `disturb` sees each request with its number (from 1) and may answer in its stead."""

    clock: ShiftedClock
    requests: list[str] = field(default_factory=list)
    disturb: Callable[[int, Request], Response | None] = lambda number, request: None
    #: Changes the manifest before it goes out.
    edit_manifest: Callable[[dict[str, Any]], None] = lambda manifest: None

    def __post_init__(self) -> None:
        client = RegisteredClient("client-1", (PUBLIC,))
        config = SandboxConfig(
            groups={"g1": Group()},
            clients=(client,),
            clock=self.clock,
            resources_per_file=3,
            retry_after_seconds=0,
            kickoff_window_seconds=24 * 3600,
        )
        self.app: ASGIApp = create_app(config)
        self.desk = self.app.state.sandbox.desk
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        self.requests.append(f"{request.method} {request.url.path}")
        answer = self.disturb(len(self.requests), request)
        if answer is not None:
            return await answer(scope, receive, send)
        return await self.app(scope, receive, self._editing(send))

    def _editing(self, send: Send) -> Send:
        """Passes everything on, except that a manifest goes through `edit_manifest`."""
        start: list[Any] = []

        async def edited(message: Any) -> None:
            if message["type"] == "http.response.start":
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

    def files(self) -> list[str]:
        return [line for line in self.requests if line.startswith("GET") and "/BulkRequest/" in line and is_file(line)]


def is_file(path: str) -> bool:
    return path.rpartition("/BulkRequest/")[2].count("/") == 1


@pytest.fixture
def epic() -> Iterator[DisturbedEpic]:
    epic = DisturbedEpic(ShiftedClock())
    server = uvicorn.Server(uvicorn.Config(epic, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [epic.listener]}, daemon=True)
    thread.start()
    yield epic
    server.should_exit = True
    thread.join()


@pytest.fixture
def runtime(tmp_path: Path, epic: DisturbedEpic, installed_url: str) -> Runtime:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "key.pem").touch(mode=0o600)
    (home / "key.pem").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    register_site(
        home,
        "site_a",
        {
            "fhir_url": f"{epic.url}/api/FHIR/R4",
            "client_id": "client-1",
            "private_key_file": "key.pem",
            "groups": ["g1"],
            "resource_types": list(TYPES),
            "poll_floor_seconds": 0,
            "download_workers": 1,
            "test_mode": True,
        },
    )
    settings = load_settings({"EPIC_OMOP_HOME": str(home), "EPIC_OMOP_DATABASE_URL": installed_url})
    runtime = Runtime(settings, epic.clock)
    with runtime.connect() as connection:
        connection.execute("TRUNCATE export_job, export_file, cool_down")
    return runtime


def site_of(runtime: Runtime) -> SiteSettings:
    return runtime.settings.site("site_a")


def exported(runtime: Runtime) -> LandedExport:
    (landed,) = bulk.export_site(runtime, site_of(runtime))
    return landed


def states(runtime: Runtime) -> list[str]:
    with runtime.connect() as connection:
        return [job.state for job in export_jobs.list_jobs(connection)]


def assert_whole(runtime: Runtime, landed: LandedExport) -> None:
    assert runtime.landing.open("site_a", landed.export_id, verify=True) == landed
    assert sorted(line for file in landed.files for line in open_landed(file.path).read().splitlines()) == ALL_LINES
    assert not [path for path in landed.folder.rglob("*") if path.suffix in (".part", ".tmp")]
    with runtime.connect() as connection:
        row = connection.execute(
            "SELECT count(*), sum(lines) FROM export_file WHERE export_id = %s AND file LIKE 'files/%%'",
            [landed.export_id],
        ).fetchone()
    assert row == (4, 12)


def test_ended_between_the_last_file_and_the_warehouse(runtime: Runtime, epic: DisturbedEpic) -> None:
    """The store says finished, the warehouse does not know yet."""
    landed = exported(runtime)
    with runtime.connect() as connection:
        connection.execute("UPDATE export_job SET state = 'complete', landed_at = NULL")
        connection.execute("TRUNCATE export_file")
    assert exported(runtime) == landed
    assert_whole(runtime, landed)
    assert len(epic.files()) == 4


# --- files


def once(path_end: str, answer: Callable[[], Response]) -> Callable[[int, Request], Response | None]:
    """Answer the first request for that file, and leave the others alone."""
    left = [answer]

    def disturb(number: int, request: Request) -> Response | None:
        if is_file(request.url.path) and request.url.path.endswith(path_end) and left:
            return left.pop()()
        return None

    return disturb


def cut_body() -> Response:
    return Response(b'{"resourceType":"Pa', headers={"Content-Length": "500"})


def cut_gzip() -> Response:
    packed = gzip.compress(b"\n".join(ALL_LINES))
    return Response(packed[:-8], headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    "answer",
    [
        cut_body,
        cut_gzip,
        lambda: Response(b'{"resourceType":"Patient"}\n'),  # fewer lines than the manifest says
        lambda: Response(b"", 500),
        lambda: Response(b"", 429, {"Retry-After": "3"}),
        lambda: Response(b"", 401),
    ],
    ids=["cut body", "cut gzip", "short", "500", "429", "401"],
)
def test_a_file_that_fails_once_is_fetched_again(
    runtime: Runtime, epic: DisturbedEpic, answer: Callable[[], Response]
) -> None:
    epic.disturb = once("", answer)
    assert_whole(runtime, exported(runtime))
    assert len(epic.files()) == 5


def test_a_file_that_stays_short_keeps_the_job_on_the_server(runtime: Runtime, epic: DisturbedEpic) -> None:
    def disturb(number: int, request: Request) -> Response | None:
        return Response(b"{}\n") if is_file(request.url.path) and number > 6 else None

    epic.disturb = disturb
    with pytest.raises(RemoteUnavailable, match="came with 1 lines; the manifest says 3"):
        exported(runtime)
    assert states(runtime) == ["complete"]
    assert not any(line.startswith("DELETE") for line in epic.requests)
    epic.disturb = lambda number, request: None
    before = len(epic.files())
    assert_whole(runtime, exported(runtime))
    assert len(epic.files()) == before + 3


def test_a_count_that_is_too_small_loses_nothing(
    runtime: Runtime, epic: DisturbedEpic, caplog: pytest.LogCaptureFixture
) -> None:
    epic.edit_manifest = lambda manifest: manifest["output"][0].update(count=0)
    assert_whole(runtime, exported(runtime))
    assert "more than the 0 of the manifest" in caplog.text


def test_a_lost_file_is_asked_for_by_the_new_manifest(runtime: Runtime, epic: DisturbedEpic) -> None:
    def wrong(manifest: dict[str, Any]) -> None:
        manifest["output"][1]["url"] += "-expired"
        epic.edit_manifest = lambda manifest: None

    epic.edit_manifest = wrong
    assert_whole(runtime, exported(runtime))


def test_a_file_that_is_lost_for_good_does_not_take_the_others_along(runtime: Runtime, epic: DisturbedEpic) -> None:
    epic.edit_manifest = lambda manifest: manifest["output"][1].update(url=manifest["output"][1]["url"] + "-gone")
    landed = exported(runtime)
    assert [file.number for file in landed.files] == [1, 3, 4]
    assert states(runtime) == ["landed"]
    assert not any(line.startswith("DELETE") for line in epic.requests), "what is missing stays on the server"


def test_a_file_on_another_host_gets_no_token(runtime: Runtime, epic: DisturbedEpic) -> None:
    epic.edit_manifest = lambda manifest: manifest["output"][1].update(url="http://files.example.org/1")
    with pytest.raises(UnsafeRemote, match="allowed_origins"):
        exported(runtime)
    assert states(runtime) == ["complete"]


def test_a_type_that_is_a_path_ends_the_export(runtime: Runtime, epic: DisturbedEpic) -> None:
    epic.edit_manifest = lambda manifest: manifest["output"][1].update(type="../../x")
    with pytest.raises(UnsafeRemote, match="not a resource type"):
        exported(runtime)
    assert not list(runtime.settings.home.parent.rglob("x.*"))


def test_outcomes_and_deleted_are_kept_apart(
    runtime: Runtime, epic: DisturbedEpic, caplog: pytest.LogCaptureFixture
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        del manifest["error"]
        manifest["outcome"] = [{"url": "/side/outcome"}]
        manifest["deleted"] = [{"type": "Bundle", "url": "/side/deleted", "count": 1}]
        manifest["extension"] = []

    def side(number: int, request: Request) -> Response | None:
        bodies = {"/side/outcome": b'{"resourceType":"OperationOutcome"}\n' * 2, "/side/deleted": b"{}"}
        body = bodies.get(request.url.path)
        return None if body is None else Response(body)

    epic.edit_manifest, epic.disturb = edit, side
    landed = exported(runtime)
    assert_whole(runtime, landed)
    assert [(file.resource_type, file.lines) for file in landed.outcomes] == [("OperationOutcome", 2)]
    assert [(file.resource_type, file.number) for file in landed.deleted] == [("Bundle", 6)]
    assert "Messages of the site: 2 resource (error unreadable)" in caplog.text


# --- status, kick-off, delete


@pytest.mark.parametrize("status", [401, 408, 429, 500, 503])
def test_a_status_call_that_fails_once(runtime: Runtime, epic: DisturbedEpic, status: int) -> None:
    epic.disturb = lambda number, request: Response(b"", status) if number == 5 else None
    assert_whole(runtime, exported(runtime))


def test_a_status_that_fails_for_ever_stops_and_goes_on_later(runtime: Runtime, epic: DisturbedEpic) -> None:
    epic.disturb = lambda number, request: Response(b"", 500) if "BulkRequest" in request.url.path else None
    with pytest.raises(RemoteUnavailable, match="10 status calls in a row failed"):
        exported(runtime)
    assert states(runtime) == ["running"]
    epic.disturb = lambda number, request: None
    assert_whole(runtime, exported(runtime))
    assert sum("$export" in line for line in epic.requests) == 1


def test_a_kick_off_without_an_answer_is_not_repeated(runtime: Runtime, epic: DisturbedEpic) -> None:
    epic.disturb = lambda number, request: Response(b"", 504) if "$export" in request.url.path else None
    for _ in range(2):
        with pytest.raises(EpicOmopError):
            exported(runtime)
    assert sum("$export" in line for line in epic.requests) == 1
    assert states(runtime) == ["failed"]


def test_a_delete_that_fails_does_not_lose_the_export(runtime: Runtime, epic: DisturbedEpic) -> None:
    epic.disturb = lambda number, request: Response(b"", 403) if request.method == "DELETE" else None
    landed = exported(runtime)
    assert_whole(runtime, landed)
    with runtime.connect() as connection:
        job = export_jobs.get_job(connection, landed.export_id)
    assert job.state == "landed"
    assert job.deleted_at is None
    assert "not deleted on the server" in (job.error or "")
    epic.disturb = lambda number, request: None
    assert exported(runtime) == landed
    assert not epic.desk._state.jobs


def test_a_full_disk_stops_and_goes_on_later(runtime: Runtime, epic: DisturbedEpic) -> None:
    """A folder in the place of the second file stands for a store that cannot be written."""
    job = bulk.open_or_adopt(runtime, site_of(runtime), "g1")
    draft = runtime.landing.begin("site_a", job.export_id)
    obstacle = draft.folder / "files" / "Patient.00002.ndjson.zst"
    obstacle.mkdir()
    with pytest.raises(LandingError, match=r"Patient\.00002\.ndjson cannot be"):
        exported(runtime)
    assert states(runtime) == ["complete"]
    obstacle.rmdir()
    assert_whole(runtime, exported(runtime))
    assert [path[-1] for path in sorted(epic.files())] == ["1", "2", "2", "3", "4"]
