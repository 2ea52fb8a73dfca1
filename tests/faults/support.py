"""What tests of exports under faults share: a site of the simulated Epic, its home and warehouse, and processes to kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import TypeAdapter
from starlette.requests import Request

from pipeline.core.settings import SiteSettings, load_settings, register_site
from pipeline.extract import bulk
from pipeline.landing.reading import open_landed
from pipeline.landing.store import LandedExport
from pipeline.sandbox.config import RegisteredClient, ResourceSource, SandboxConfig
from pipeline.sandbox.faults import Fault
from pipeline.sandbox.server import RunningSandbox, Watch
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime
from tests.databases import empty

KEY = ec.generate_private_key(ec.SECP384R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

_FAULTS: TypeAdapter[tuple[Fault, ...]] = TypeAdapter(tuple[Fault, ...])


class ShiftedClock:
    """The real time and what was slept: waiting costs nothing, and the simulated Epic goes by the same clock."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def sleep(self, seconds: float) -> None:
        self.shift += timedelta(seconds=seconds)


@dataclass(frozen=True)
class FixedLines:
    """A group of given lines, with the type that each goes with."""

    content: tuple[tuple[str, bytes], ...]

    def resource_types(self) -> Collection[str]:
        return tuple(dict.fromkeys(kind for kind, _ in self.content))

    def lines(self, types: Collection[str], first_day: date, day: int) -> Iterator[tuple[str, bytes]]:
        return ((kind, line) for kind, line in self.content if kind in types)


@dataclass
class FaultyEpic:
    """A site whose server can be stopped and started again with other faults, on its port and with its jobs."""

    home: Path
    database_url: str
    source: ResourceSource
    types: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    resources_per_file: int = 3000
    clock: ShiftedClock = field(default_factory=ShiftedClock)
    requests: list[str] = field(default_factory=list)
    #: First byte and If-Range of every request with a Range, in the order in which they came.
    ranges: list[tuple[int, str | None]] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self.home.mkdir(mode=0o700)
        (self.home / "key.pem").touch(mode=0o600)
        (self.home / "key.pem").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    @contextmanager
    def serving(self, *faults: Mapping[str, Any], watch: Watch | None = None, **config: Any) -> Iterator[Runtime]:
        """The server with these faults, and a runtime whose one site it is."""

        def watched(when: str, request: Request) -> None:
            if when == "before":
                self.requests.append(f"{request.method} {request.url.path}")
                if asked := request.headers.get("range"):
                    self.ranges.append((int(asked.removeprefix("bytes=").rstrip("-")), request.headers.get("if-range")))
            if watch:
                watch(when, request)

        settings = SandboxConfig(
            groups={"g1": self.source},
            clients=(RegisteredClient("client-1", (PUBLIC,)),),
            clock=self.clock,
            resources_per_file=self.resources_per_file,
            state_dir=self.home / "sandbox",
            faults=_FAULTS.validate_python(faults),
            **{"retry_after_seconds": 0, **config},
        )
        with RunningSandbox(settings, self.port, watched) as sandbox:
            self.port = sandbox.port
            self.sandbox = sandbox
            entry = {
                "fhir_url": sandbox.fhir_url,
                "client_id": "client-1",
                "private_key_file": "key.pem",
                "groups": ["g1"],
                "resource_types": list(self.types),
                "poll_floor_seconds": 0,
                "test_mode": True,
                **self.settings,
            }
            register_site(self.home, "site_a", entry)
            yield self.runtime()

    def runtime(self) -> Runtime:
        return Runtime(load_settings(self.environment), self.clock)

    @property
    def environment(self) -> dict[str, str]:
        return {"EPIC_OMOP_HOME": str(self.home), "EPIC_OMOP_DATABASE_URL": self.database_url}

    @property
    def kick_offs(self) -> int:
        return sum("$export" in line for line in self.requests)

    def file_requests(self) -> list[str]:
        return [line for line in self.requests if line.startswith("GET") and is_file(line)]


def is_file(path: str) -> bool:
    return "/BulkRequest/" in path and path.rpartition("/BulkRequest/")[2].count("/") == 1


def site_of(runtime: Runtime) -> SiteSettings:
    return runtime.settings.site("site_a")


def exported(runtime: Runtime) -> LandedExport:
    """Run the export to its end, as the commands do. Raises what stopped it."""
    (landed,) = bulk.export_site(runtime, site_of(runtime))
    return landed


def jobs(runtime: Runtime) -> list[ExportJob]:
    """Newest first."""
    with runtime.connect() as connection:
        return export_jobs.list_jobs(connection)


def states(runtime: Runtime) -> list[str]:
    return [job.state for job in jobs(runtime)]


def landed_bytes(landed: LandedExport) -> dict[str, bytes]:
    """Name of every file below the export's folder, but our own notes about them → content."""
    files = (path for path in landed.folder.rglob("*") if path.is_file() and path.suffix != ".json")
    logical = (path.with_suffix("") if path.suffix == ".zst" else path for path in files)
    return {path.relative_to(landed.folder).as_posix(): open_landed(path).read() for path in logical}


def landed_lines(landed: LandedExport) -> Counter[bytes]:
    return Counter(line for file in landed.files for line in open_landed(file.path).read().splitlines())


def empty_warehouse(runtime: Runtime) -> None:
    with runtime.connect() as connection:
        empty(connection)


# --- processes to kill


class Nursery:
    """A process with one thread that has imported the pipeline, and forks a fresh one for each export: one that is
    killed costs a tenth of a second instead of the seconds of its imports. A context manager."""

    def __enter__(self) -> Nursery:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def start(
        self,
        epic: FaultyEpic,
        *,
        kill_at: int = 0,
        durable: bool = False,
        of: str | None = None,
        largest_file: int | None = None,
    ) -> int:
        """Fork an export of the site; returns the process id. `ended` must be called next.

        With `durable`, it kills itself before its `kill_at`-th durable write (0: never, and what they
        were is left in the file `durable` of the home); `of` counts only the writes of that name. `largest_file`: the
        system lets it write no longer file, in bytes.
        """
        order = {"environment": epic.environment, "shift": epic.clock.shift.total_seconds()}
        return int(
            self._told({**order, "kill_at": kill_at, "durable": durable, "of": of, "largest_file": largest_file})["pid"]
        )

    def ended(self) -> int:
        """The exit code of the process that was started; a negative one is the signal that ended it."""
        return int(self._answer()["status"])

    def _told(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer
