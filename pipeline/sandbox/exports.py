"""Export jobs of the simulated Epic: the kick-off rule, files on disk, state that outlives a restart. Knows no HTTP."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from pipeline.core.clock import Clock
from pipeline.core.files import write_whole
from pipeline.sandbox.config import SandboxConfig
from pipeline.sandbox.shaping import Category, ExtraFile, FileShape

__all__ = ["ExportDesk", "ExportFile", "Job", "SandboxClock"]

_log = logging.getLogger(__name__)


class SandboxClock:
    """The sandbox's own time: the real clock and what was added to it."""

    def __init__(self, clock: Clock, added_seconds: float = 0) -> None:
        self._clock = clock
        self.added_seconds = added_seconds

    def now(self) -> datetime:
        return self._clock.now() + timedelta(seconds=self.added_seconds)


@dataclass(frozen=True)
class ExportFile:
    """`count` is the number of lines that are not blank; broken ones count."""

    resource_type: str
    name: str
    count: int
    #: The manifest's list in which it stands.
    category: Category = "output"


@dataclass
class Job:
    """One accepted kick-off. `files` is None until they are all written."""

    id: str
    client_id: str
    group: str
    types: list[str]
    request: str
    accepted: datetime
    day: int
    polls: int = 0
    files: list[ExportFile] | None = None
    #: Only resources whose meta.lastUpdated is not before it; those without one are always there.
    since: datetime | None = None


@dataclass
class _State:
    started: datetime
    added_seconds: float = 0
    kickoffs: dict[str, datetime] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)


class ExportDesk:
    """Accepts, runs and forgets export jobs; files are written by one background thread."""

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-export")
        self._stack = ExitStack()
        if config.state_dir is None:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-")))
        else:
            self._folder = config.state_dir
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state = self._load()
        self.clock = SandboxClock(config.clock, self._state.added_seconds)
        self._writing: dict[str, Future[list[ExportFile]]] = {
            job.id: self._writer.submit(self._write, job) for job in self._state.jobs.values() if job.files is None
        }

    def close(self) -> None:
        self._writer.shutdown(cancel_futures=True)
        self._stack.close()

    @property
    def started(self) -> datetime:
        """The sandbox's first start."""
        return self._state.started

    @property
    def day(self) -> int:
        """Whole days of the sandbox's clock since its first start."""
        return (self.clock.now() - self._state.started).days

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock on."""
        self.clock.added_seconds += seconds
        self._state.added_seconds = self.clock.added_seconds
        self._save()

    def too_recent(self, client_id: str, group: str) -> bool:
        last = self._state.kickoffs.get(f"{client_id}|{group}")
        return last is not None and (self.clock.now() - last).total_seconds() < self._config.kickoff_window_seconds

    def kick_off(
        self, client_id: str, group: str, types: list[str], request: str, since: datetime | None = None
    ) -> Job:
        """Start a job. `too_recent` was asked before; the group exists."""
        now = self.clock.now()
        job = Job(secrets.token_hex(16).upper(), client_id, group, types, request, now, self.day, since=since)
        self._state.jobs[job.id] = job
        self._state.kickoffs[f"{client_id}|{group}"] = now
        self._save()
        self._writing[job.id] = self._writer.submit(self._write, job)
        return job

    def find(self, job_id: str, client_id: str) -> Job | None:
        """The job, if there is one of that client; another client's job does not exist for it."""
        job = self._state.jobs.get(job_id)
        return job if job is not None and job.client_id == client_id else None

    def poll(self, job: Job) -> Future[list[ExportFile]] | None:
        """Count a status request. The future of the job's files when its time has come, else None."""
        job.polls += 1
        waited = (self.clock.now() - job.accepted).total_seconds()
        due = job.polls > self._config.polls_until_complete and waited >= self._config.seconds_until_complete
        self._save()
        if not due:
            return None
        if job.files is not None:
            finished: Future[list[ExportFile]] = Future()
            finished.set_result(job.files)
            return finished
        return self._writing[job.id]

    def complete(self, job: Job, files: list[ExportFile]) -> None:
        if job.files is None:
            job.files = files
            self._writing.pop(job.id, None)
            self._save()

    def path(self, job: Job, name: str) -> Path | None:
        """The file on disk, if the job lists a file of that name."""
        known = any(file.name == name for file in job.files or [])
        return self._job_folder(job) / f"{name}.ndjson" if known else None

    def place(self, job_id: str, name: str) -> tuple[int, str] | None:
        """Number (from 1, as the manifest lists them) and type of a file."""
        job = self._state.jobs.get(job_id)
        files = enumerate(job.files or [], start=1) if job else ()
        return next(((number, file.resource_type) for number, file in files if file.name == name), None)

    def delete(self, job: Job) -> None:
        """Forget the job and its files. The kick-off still counts for the window."""
        writing = self._writing.pop(job.id, None)
        if writing is not None and not writing.cancel():
            writing.add_done_callback(lambda _: shutil.rmtree(self._job_folder(job), ignore_errors=True))
        del self._state.jobs[job.id]
        self._save()
        shutil.rmtree(self._job_folder(job), ignore_errors=True)

    def _job_folder(self, job: Job) -> Path:
        return self._folder / "jobs" / job.id

    def _write(self, job: Job) -> list[ExportFile]:
        folder = self._job_folder(job)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        source = self._config.groups[job.group]
        try:
            shape = FileShape(self._config.faults)
            with _FileCutter(folder, self._config.resources_per_file, shape) as cutter:
                types = [name for name in job.types if name not in self._config.left_out_types]
                for resource_type, line in source.lines(types, self._state.started.date(), job.day):
                    if self._is_left_out(line) or _is_older(line, job.since):
                        continue
                    for written in shape.lines(resource_type, line):
                        cutter.add(resource_type, written)
        except Exception:
            _log.exception("Export %s of group %s could not be written.", job.id, job.group)
            raise
        files = sorted(cutter.files, key=lambda file: job.types.index(file.resource_type))
        return [*files, *(cutter.add_file(file) for file in shape.extra_files())]

    def _is_left_out(self, line: bytes) -> bool:
        left_out = self._config.left_out_ids
        if not left_out:
            return False
        try:
            return orjson.loads(line).get("id") in left_out
        except (orjson.JSONDecodeError, AttributeError):
            return False

    def _load(self) -> _State:
        file = self._folder / "state.json"
        if not file.exists():
            return _State(started=self._config.clock.now())
        raw = orjson.loads(file.read_bytes())
        return _State(
            started=datetime.fromisoformat(raw["started"]),
            added_seconds=raw["added_seconds"],
            kickoffs={key: datetime.fromisoformat(when) for key, when in raw["kickoffs"].items()},
            jobs={key: _job_from(job) for key, job in raw["jobs"].items() if job["group"] in self._config.groups},
        )

    def _save(self) -> None:
        write_whole(self._folder / "state.json", orjson.dumps(asdict(self._state)), is_durable=False)


def _is_older(line: bytes, since: datetime | None) -> bool:
    if since is None:
        return False
    try:
        return datetime.fromisoformat(orjson.loads(line)["meta"]["lastUpdated"]) < since
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return False


def _job_from(raw: dict[str, Any]) -> Job:
    since = datetime.fromisoformat(raw["since"]) if raw.get("since") else None
    files = None if raw["files"] is None else [ExportFile(**file) for file in raw["files"]]
    return Job(**{**raw, "accepted": datetime.fromisoformat(raw["accepted"]), "files": files, "since": since})


class _FileCutter:
    """Writes lines to one open file a type, beginning another after `limit` lines that are not blank."""

    def __init__(self, folder: Path, limit: int, shape: FileShape) -> None:
        self._folder = folder
        self._limit = limit
        self._shape = shape
        self._number = 0
        self._open: dict[str, tuple[str, BinaryIO]] = {}
        self._counts: dict[str, int] = {}
        self.files: list[ExportFile] = []

    def __enter__(self) -> _FileCutter:
        return self

    def __exit__(self, *_: object) -> None:
        for resource_type in list(self._open):
            self._finish(resource_type)

    def add(self, resource_type: str, line: bytes) -> None:
        blank = not line.strip()
        if not blank and self._counts.get(resource_type) == self._limit:
            self._finish(resource_type)
        if resource_type not in self._open:
            self._number += 1
            name = f"{self._number:06}"
            self._open[resource_type] = name, (self._folder / f"{name}.ndjson").open("wb")
            self._open[resource_type][1].write(self._shape.start(resource_type))
            self._counts[resource_type] = 0
        self._counts[resource_type] += not blank
        stream = self._open[resource_type][1]
        stream.write(line)
        stream.write(b"\n")

    def _finish(self, resource_type: str) -> None:
        name, stream = self._open.pop(resource_type)
        if not self._shape.ends_with_newline(resource_type):
            stream.truncate(stream.tell() - 1)
        stream.close()
        self.files.append(ExportFile(resource_type, name, self._counts.pop(resource_type)))

    def add_file(self, file: ExtraFile) -> ExportFile:
        """Write a file besides the others."""
        self._number += 1
        name = f"{self._number:06}"
        (self._folder / f"{name}.ndjson").write_bytes(b"".join(line + b"\n" for line in file.lines))
        return ExportFile(file.resource_type, name, len(file.lines), file.category)
