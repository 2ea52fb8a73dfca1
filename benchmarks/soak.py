"""`python -m benchmarks.soak`: many sites with short nights through Dagster's daemon, against one simulated Epic with faults.

Code server, webserver, daemon and the simulated Epic are processes of their own; memory, descriptors, threads and
connections are sampled meanwhile. At the end: does anything grow, was a site starved, and has every line its outcome.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from benchmarks.soak_report import Findings, Sample, judge, plot
from omop_schema.exports import OPEN_STATES, ExportState, sql_values
from pipeline.core.settings import MAPPINGS_FOLDER, Settings, load_settings, register_site
from pipeline.orchestration.instance import dagster_environment, prepare_instance
from pipeline.orchestration.switches import open_instance, turn
from pipeline.sandbox.config import RegisteredClient, SandboxConfig
from pipeline.sandbox.faults import CutBody, CutGzip, Duplicate, EndTokens, Fault, LinesFault, NoResponse, ResponseFault
from pipeline.sandbox.server import FHIR_PATH, RunningSandbox
from pipeline.sandbox.sources import GeneratedSource
from pipeline.warehouse.embedded.server import EmbeddedServer
from pipeline.warehouse.schema import install_schemas
from pipeline.warehouse.vocabulary import compile_index, load_vocabulary

__all__ = ["main"]

_CLIENT = "soak"
_SAMPLE_SECONDS = 5.0
_DAY_SECONDS = 86_400
_TYPES = (
    "Patient",
    "Encounter",
    "Condition",
    "Observation",
    "MedicationRequest",
    "Procedure",
    "Location",
    "Practitioner",
)


@dataclass(frozen=True)
class Plan:
    """How long it takes, in seconds, and how much there is. A site's night comes every `night_minutes`."""

    sites: int
    groups: int
    patients: int
    seconds: float
    night_minutes: int
    #: After that nothing new is begun; what is open may end.
    seconds_to_end: float = 600.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 1 where something grows, a site was starved, or a line has no outcome."""
    options = _options(arguments)
    plan = Plan(options.sites, options.groups, options.patients, options.minutes * 60, options.night_minutes)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="epic-omop-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    samples, findings = _soak(plan, folder, in_postgres=options.storage == "postgres")
    if options.json:
        document = {"plan": asdict(plan), "findings": asdict(findings), "samples": [asdict(one) for one in samples]}
        options.json.write_text(json.dumps(document, indent=1, default=str))
    if options.plot:
        options.plot.write_text(plot(samples, findings))
    print(findings.text())
    if not options.folder:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if findings.problems else 0)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__.partition("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--groups", type=int, default=3, help="of each site")
    parser.add_argument("--patients", type=int, default=20, help="of each group")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--night-minutes", type=int, default=10, help="a site's schedule; sites follow each other by minutes"
    )
    parser.add_argument("--storage", choices=("postgres", "sqlite"), default="postgres", help="Dagster's")
    parser.add_argument("--folder", type=Path, help="where it works; kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="an SVG picture")
    return parser.parse_args(arguments)


def _soak(plan: Plan, folder: Path, *, in_postgres: bool) -> tuple[list[Sample], Findings]:
    home = folder / "home"
    server = EmbeddedServer(home)
    with ExitStack() as stack:
        url = server.ensure_running()
        stack.callback(server.stop)
        base, key = stack.enter_context(_epic(plan, folder))
        settings = _prepare(plan, home, url, base, key, in_postgres=in_postgres)
        services = stack.enter_context(_services(settings, folder))
        with open_instance(settings) as instance:
            for site in settings.sites.values():
                turn(instance, site, on=True)
        watched = {**services, "simulated Epic": base.process}
        samples = list(_watch(plan, watched, url, base.url))
        with open_instance(settings) as instance:
            _stop_schedules(instance, settings)  # sensors stay on until all is loaded
        samples += _until_done(plan, watched, url, settings)
        findings = judge(samples, url, settings, plan.seconds, plan.night_minutes * 60)
    return samples, findings


# --- the simulated Epic ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epic:
    url: str
    process: int


@contextmanager
def _epic(plan: Plan, folder: Path) -> Iterator[tuple[Epic, Path]]:
    private = ec.generate_private_key(ec.SECP384R1())
    key = folder / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(plan, public, there), daemon=True)
    process.start()
    there.close()
    try:
        yield Epic(here.recv(), int(process.pid or 0)), key
    finally:
        here.close()
        process.join(60)


def _serve(plan: Plan, public: str, connection: Connection) -> None:
    count = plan.sites * plan.groups
    groups = {
        group_name(number // plan.groups, number % plan.groups): GeneratedSource(
            plan.patients * count, 1, number, count
        )
        for number in range(count)
    }
    config = SandboxConfig(
        groups=groups,
        clients=(RegisteredClient(_CLIENT, (public,)),),
        kickoff_window_seconds=plan.night_minutes * 30,
        faults=tuple(_faults()),
    )
    with RunningSandbox(config) as sandbox:
        connection.send(sandbox.base_url)
        with suppress(EOFError):
            connection.recv()


def _faults() -> Iterator[Fault]:
    """Again and again for hours: answers that ask to wait or fail, connections that end, bodies that are cut, tokens that end;
    and in all files lines that are no resources, and resources that come twice."""
    for turn_of in range(400):
        yield ResponseFault(at="status", status=503, retry_after="date", after=turn_of * 23 + 7, code="transient")
        yield ResponseFault(at="file", status=500, after=turn_of * 61 + 11, code="exception")
        yield ResponseFault(at="kick-off", status=429, retry_after="5", after=turn_of * 17 + 5, code="throttled")
        yield NoResponse(at="status", after=turn_of * 41 + 13)
        yield NoResponse(at="file", after=turn_of * 71 + 17)
        yield CutBody(after=turn_of * 53 + 19, bytes=2000)
        yield CutGzip(after=turn_of * 67 + 23)
        yield EndTokens(at="file", after=turn_of * 97 + 29)
        yield ResponseFault(at="token", status=503, after=turn_of * 31 + 9)
    yield LinesFault(how="malformed-line", type="Condition")
    yield Duplicate(type="Observation")


# --- what is ours -----------------------------------------------------------------------------------------------------------


def site_name(number: int) -> str:
    return f"site_{number + 1:02}"


def group_name(site: int, number: int) -> str:
    return f"g{site + 1:02}-{number + 1}"


def _prepare(plan: Plan, home: Path, url: str, epic: Epic, key: Path, *, in_postgres: bool) -> Settings:
    """Schemas, vocabulary and sites; the environment for all processes that follow."""
    names = {"cdm": "cdm", "vocab": "vocab", "etl": "etl"}
    install_schemas(url, **names)
    release = load_vocabulary(url, MAPPINGS_FOLDER / "demo_vocabulary", vocab_schema="vocab", etl_schema="etl")
    compile_index(url, release, vocab_schema="vocab", home=home)
    for number in range(plan.sites):
        register_site(home, site_name(number), _entry(plan, number, epic, key))
    os.environ["EPIC_OMOP_HOME"] = str(home)
    os.environ["EPIC_OMOP_DATABASE_URL"] = url
    os.environ["EPIC_OMOP_WORKERS"] = "1"
    if in_postgres:
        os.environ["EPIC_OMOP_DAGSTER_SCHEMA"] = "dagster"
    settings = load_settings()
    prepare_instance(settings)
    os.environ["DAGSTER_HOME"] = str(home / "dagster")
    return settings


def _entry(plan: Plan, number: int, epic: Epic, key: Path) -> dict[str, Any]:
    minutes = range(number % plan.night_minutes, 60, plan.night_minutes)
    return {
        "fhir_url": epic.url + FHIR_PATH,
        "client_id": _CLIENT,
        "private_key_file": str(key),
        "groups": [group_name(number, group) for group in range(plan.groups)],
        "resource_types": list(_TYPES),
        "schedule": f"{','.join(map(str, minutes))} * * * *",
        "kickoff_window_hours": plan.night_minutes / 120,
        "poll_floor_seconds": 5,
        "poll_ceiling_seconds": 60,
        "test_mode": True,
    }


@contextmanager
def _services(settings: Settings, folder: Path) -> Iterator[dict[str, int]]:
    """As deploy/systemd starts them; yields their process ids."""
    socket, workspace = Path(tempfile.mkdtemp(prefix="soak-")) / "code", folder / "workspace.yaml"
    workspace.write_text(
        f"load_from: [{{grpc_server: {{socket: {socket}, location_name: pipeline.definitions}}}}]\n", encoding="utf-8"
    )
    programs = Path(sys.executable).parent
    commands = {
        "code server": [programs / "dagster", "code-server", "start", "-s", socket, "-m", "pipeline.definitions"],
        "webserver": [
            sys.executable, "-m", "pipeline.orchestration.webserver", "-h", "127.0.0.1", "-p", str(_free_port()),
            "--workspace", workspace,
        ],
        "daemon": [programs / "dagster-daemon", "run", "--workspace", workspace],
    }  # fmt: skip
    environment = dagster_environment(settings, settings.home / "dagster")
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            with (folder / f"{name.replace(' ', '-')}.log").open("wb") as log:
                running[name] = subprocess.Popen(
                    list(map(str, command)), env=environment, stdout=log, stderr=log, cwd=folder
                )
            if name == "code server":
                _wait_for(socket)
        yield {name: process.pid for name, process in running.items()}
    finally:
        for process in reversed(running.values()):
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(120)
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(socket.parent, ignore_errors=True)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 300
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} is not there")
        time.sleep(0.5)


# --- looking ----------------------------------------------------------------------------------------------------------------


def _watch(plan: Plan, services: Mapping[str, int], url: str, epic: str) -> Iterator[Sample]:
    """Samples until the time is over; with each night a day passes in the simulated Epic, so that about 1 % changes."""
    began = time.monotonic()
    next_day = plan.night_minutes * 60.0
    while (at := time.monotonic() - began) < plan.seconds:
        if at > next_day:
            httpx.post(f"{epic}/sandbox/clock", json={"advance_seconds": _DAY_SECONDS}, timeout=30, trust_env=False)
            next_day += plan.night_minutes * 60
        yield sample(at, services, url)
        time.sleep(max(0.0, _SAMPLE_SECONDS - (time.monotonic() - began - at)))


def _stop_schedules(instance: Any, settings: Settings) -> None:
    from dagster._core.scheduler.instigation import InstigatorStatus

    from pipeline.orchestration.switches import schedule_name

    names = {schedule_name(site) for site in settings.sites.values()}
    for state in instance.all_instigator_state():
        if state.instigator_name in names:
            instance.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))


def _until_done(plan: Plan, services: Mapping[str, int], url: str, settings: Settings) -> list[Sample]:
    """Until no run and no export is open, or the time for that is over."""
    import dagster as dg

    open_states = [
        status for status in dg.DagsterRunStatus if status.value in ("QUEUED", "STARTING", "STARTED", "NOT_STARTED")
    ]
    samples, began = [], time.monotonic()
    with open_instance(settings) as instance:
        while (at := time.monotonic() - began) < plan.seconds_to_end:
            samples.append(sample(plan.seconds + at, services, url))
            if not instance.get_runs_count(dg.RunsFilter(statuses=open_states)) and not samples[-1].open_exports:
                break
            time.sleep(_SAMPLE_SECONDS)
    return samples


@dataclass
class _Sums:
    """Of a process and of those children that stay."""

    rss: int = 0
    descriptors: int = 0
    threads: int = 0
    runs: int = 0

    @classmethod
    def of(cls, pid: int) -> _Sums:
        sums = cls()
        with suppress(psutil.Error):
            sums._add(psutil.Process(pid))
        return sums

    def _add(self, process: psutil.Process) -> None:
        with suppress(psutil.Error):
            self.rss += process.memory_info().rss
            self.descriptors += process.num_fds()
            self.threads += process.num_threads()
            for child in process.children():
                if _is_run(child):  # with its steps and workers
                    self.runs += 1
                else:
                    self._add(child)


def sample(at: float, services: Mapping[str, int], url: str) -> Sample:
    """A service is its process and those children that stay; runs are counted apart."""
    sums = {name: _Sums.of(pid) for name, pid in services.items()}
    with psycopg.connect(url) as connection:
        connections = dict(
            connection.execute(
                "SELECT coalesce(nullif(application_name, ''), 'Dagster'), count(*) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1"
            ).fetchall()
        )
        row = connection.execute(
            "SELECT count(*) FILTER (WHERE state = %s),"
            f" count(*) FILTER (WHERE state IN {sql_values(OPEN_STATES)}) FROM etl.export_job",
            (ExportState.PUBLISHED,),
        ).fetchone()
        published, open_exports = row or (0, 0)
    return Sample(
        at, os.getloadavg()[0], {name: one.rss for name, one in sums.items()},
        {name: one.descriptors for name, one in sums.items()}, {name: one.threads for name, one in sums.items()},
        connections, sum(one.runs for one in sums.values()), published, open_exports,
    )  # fmt: skip


def _is_run(process: psutil.Process) -> bool:
    """The code server starts a run as a process of multiprocessing."""
    with suppress(psutil.Error):
        return "multiprocessing.spawn" in " ".join(process.cmdline())
    return True


if __name__ == "__main__":
    main()
