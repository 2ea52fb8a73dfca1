"""What tests of hydration and crawl share: a simulated Epic, a warehouse with the demonstration vocabulary, one clock."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.core.settings import Settings, SiteSettings
from pipeline.extract.bulk import export_site
from pipeline.landing.reading import open_landed
from pipeline.landing.store import LandedExport
from pipeline.quality.verify import verify_warehouse
from pipeline.sandbox.config import RegisteredClient, SandboxConfig
from pipeline.sandbox.server import RunningSandbox
from pipeline.sandbox.sources import GeneratedSource
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime
from tests.databases import Prepared
from tests.warehouse_content import Content, warehouse_content

KEY = ec.generate_private_key(ec.SECP384R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
SHARED = ("Medication", "Location", "Practitioner", "PractitionerRole", "Organization")
PATIENTS = 12


class ShiftedClock:
    """The real time and what was slept: waiting costs nothing, and the simulated Epic goes by the same clock."""

    def __init__(self) -> None:
        self.shift = timedelta()
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.shift += timedelta(seconds=seconds)


class Watched:
    """Before the sandbox's application: counts what is asked for, and answers some paths by itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.paths: list[str] = []
        self.queries: list[str] = []
        #: path → (status, body, how often; -1 for ever)
        self.answers: dict[str, tuple[int, bytes, int]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix("/api/FHIR/R4/")
            self.paths.append(path)
            self.queries.append(scope["query_string"].decode())
            planned = self.answers.get(path)
            if planned and planned[2]:
                self.answers[path] = (*planned[:2], planned[2] - 1)
                headers = [(b"content-type", b"application/fhir+json")]
                await send({"type": "http.response.start", "status": planned[0], "headers": headers})
                await send({"type": "http.response.body", "body": planned[1]})
                return
        await self.app(scope, receive, send)

    def asked(self, resource_type: str) -> list[str]:
        """Paths of reads of one type."""
        return [path for path in self.paths if path.startswith(f"{resource_type}/")]


@dataclass
class World:
    sandbox: RunningSandbox
    watched: Watched
    clock: ShiftedClock
    runtime: Runtime
    site: SiteSettings
    landed: list[LandedExport] = field(default_factory=list)

    def with_site(self, **changes: Any) -> World:
        """The same with other settings of the site."""
        site = self.site.model_copy(update=changes)
        settings = self.runtime.settings.model_copy(update={"sites": {site.name: site}})
        return replace(self, site=site, runtime=Runtime(settings, self.clock))

    def export(self) -> LandedExport:
        """A bulk export, landed; the next one comes a day later."""
        landed = export_site(self.runtime, self.site)[0]
        self.landed.append(landed)
        self.clock.sleep(25 * 3600)
        return landed

    def content(self) -> Content:
        with self.runtime.connect() as connection:
            assert [check for check in verify_warehouse(connection, "cdm") if not check.ok] == []
            content = warehouse_content(connection, state=False)
        # Open coverages end at the as-of date, which is later where a hydration came on a later day.
        content.pop("payer_plan_period", None)
        return content

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.runtime.connect() as connection:
            return connection.execute(query, parameters or None).fetchall()

    def jobs(self, kind: str) -> list[ExportJob]:
        with self.runtime.connect() as connection:
            return [job for job in export_jobs.list_jobs(connection) if job.kind == kind]

    def lines(self, export: LandedExport) -> Counter[tuple[str, bytes]]:
        """(type of the file, line) of everything landed."""
        return Counter(
            (file.resource_type, line) for file in export.files for line in open_landed(file.path).read().splitlines()
        )

    def patients(self) -> list[str]:
        source = GeneratedSource(PATIENTS, 1)
        day = self.sandbox.state.desk.started.date()
        return [orjson.loads(line)["id"] for _, line in source.lines(["Patient"], day, 0)]


def generated(day: date) -> Iterator[dict[str, Any]]:
    """The readable resources of the sandbox's world."""
    source = GeneratedSource(PATIENTS, 1)
    for _, line in source.lines(source.resource_types(), day, 0):
        try:
            yield orjson.loads(line)
        except orjson.JSONDecodeError:
            continue


@contextmanager
def world(base: Prepared, home: Path, *, site: dict[str, Any] | None = None, **changes: Any) -> Iterator[World]:
    """A running sandbox, and a site of it in a warehouse of its own. `changes` are the sandbox's."""
    with base.copy(home) as url:
        yield from _world(url, home, site or {}, changes)


def _world(database_url: str, home: Path, site: dict[str, Any], changes: dict[str, Any]) -> Iterator[World]:
    key = home / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    clock = ShiftedClock()
    client = RegisteredClient("client-1", (PUBLIC,), changes.pop("scopes", ("system/*.read",)))
    source = GeneratedSource(PATIENTS, 1)
    config = SandboxConfig(groups={"all": source}, clients=(client,), clock=clock, retry_after_seconds=1, **changes)
    sandbox = RunningSandbox(config)
    app = sandbox._server.config.app
    watched = Watched(app)  # type: ignore[arg-type]  # always our own app
    sandbox._server.config.app = watched
    with sandbox:
        values: dict[str, Any] = {
            "name": "site_a",
            "fhir_url": sandbox.fhir_url,
            "client_id": "client-1",
            "private_key_file": key,
            "groups": ("all",),
            "resource_types": tuple(source.resource_types()),
            "time_zone": "America/Chicago",
            "poll_floor_seconds": 0,
            "test_mode": True,
            "requests_per_second": 1000,
            **site,
        }
        settings = Settings(home=home, database_url=database_url, workers=1)
        made = SiteSettings(**values)
        runtime = Runtime(settings.model_copy(update={"sites": {"site_a": made}}), clock)
        yield World(sandbox, watched, clock, runtime, made)
