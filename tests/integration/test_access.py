"""The access log, the request budget and the tokens of a session: real exports from the simulated Epic."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import Response

from pipeline.commands.status import _requests
from pipeline.core.clock import ManualClock
from pipeline.core.errors import AuthenticationRefused, RemoteRefused, RequestBudgetSpent, WarehouseError
from pipeline.core.logs import configure_logging
from pipeline.core.settings import LogSettings, Settings, SiteSettings, load_settings, register_site
from pipeline.core.workflow import working_as
from pipeline.extract import bulk
from pipeline.extract.access_log import WarehouseAccessLog
from pipeline.extract.bulk.request import checked_request
from pipeline.extract.http.recording import AccessEntry
from pipeline.extract.http.transport import RemoteRequest
from pipeline.extract.request_budget import WarehouseRequestBudget, requests_in_hour
from pipeline.extract.site_session import site_session
from pipeline.operations.site_status import site_statuses
from pipeline.orchestration.attempts import postpone
from pipeline.orchestration.jobs import kick_off_groups
from pipeline.sandbox.responses import FhirRefusal, outcome_response
from pipeline.warehouse import export_jobs
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import install_schemas
from tests.hostile_epic import CLIENT_ID, HostileEpic, ShiftedClock, is_file, running, site_entry, small_group

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def epic() -> Iterator[HostileEpic]:
    clock = ShiftedClock()
    now = clock.now()
    clock.sleep((now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1) - now).total_seconds())
    clock.slept.clear()  # an hour has just begun
    with running(HostileEpic(clock, groups={"g1": small_group(30)}, options={"token_seconds": 86_400})) as epic:
        yield epic


def runtime_of(epic: HostileEpic, folder: Path, url: str, **changes: Any) -> Runtime:
    site = SiteSettings(name="site_a", **site_entry(epic, folder, **changes))
    runtime = Runtime(Settings(home=folder / "home", database_url=url, sites={"site_a": site}), epic.clock)
    with runtime.connect() as connection:
        connection.execute("TRUNCATE export_job, export_file, cool_down, request_count")
    return runtime


def exported(runtime: Runtime) -> list[int]:
    """Lines of each landed file."""
    (landed,) = bulk.export_site(runtime, site_of(runtime))
    return [file.lines for file in landed.files]


def site_of(runtime: Runtime) -> SiteSettings:
    return runtime.settings.site("site_a")


def entries(runtime: Runtime, after: int = 0) -> list[dict[str, Any]]:
    """The access log as rows by column."""
    with runtime.connect() as connection:
        cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
        return cursor.execute("SELECT * FROM access_log WHERE id > %s ORDER BY id", [after]).fetchall()


def last_id(runtime: Runtime) -> int:
    return max((entry["id"] for entry in entries(runtime)), default=0)


def counted(runtime: Runtime) -> int:
    with runtime.connect() as connection:
        return requests_in_hour(connection, "site_a", runtime.clock.now())


# --- access log


def test_an_export_leaves_its_entries(epic: HostileEpic, tmp_path: Path, installed_url: str) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url)
    before = last_id(runtime)
    log = io.StringIO()
    levels = {name: logging.getLogger(name).level for name in ("pipeline", "omop_schema")}
    handler = configure_logging(LogSettings(level="INFO", format="json"), log)
    try:
        with working_as("epic-omop export", "run-1"):
            lines = exported(runtime)
    finally:
        logging.getLogger().removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    found = entries(runtime, before)
    assert [entry["event"] for entry in found][:4] == ["discovery", "auth start", "token", "kick-off"]
    assert Counter(entry["event"] for entry in found) == {
        "discovery": 1,
        "auth start": 1,
        "token": 1,
        "kick-off": 1,
        "status": 2,
        "file": 10,
        "delete": 1,
    }
    assert {entry["outcome"] for entry in found} == {"ok"}
    for entry in found:
        who = (entry["site"], entry["client_id"], entry["run_id"], entry["workflow"])
        assert who == ("site_a", CLIENT_ID, "run-1", "epic-omop export")
        assert entry["os_user"]
        assert abs(entry["at"] - epic.clock.now()) < timedelta(minutes=10)
    (export_id,) = {entry["export_id"] for entry in found if entry["event"] in ("kick-off", "status", "file", "delete")}
    with runtime.connect() as connection:
        assert [job.export_id for job in export_jobs.list_jobs(connection)] == [export_id]
    kick_off = found[3]
    assert (kick_off["method"], kick_off["status"]) == ("GET", 202)
    assert kick_off["url"] == f"{epic.fhir_url}/Group/g1/$export?_type=…"
    files = [entry for entry in found if entry["event"] == "file"]
    assert sorted(entry["resources"] for entry in files) == sorted(lines)
    assert sum(entry["bytes"] for entry in files) == sum(len(line) + 1 for line in small_group(30).content["Patient"])
    assert {(entry["resource_type"], entry["status"]) for entry in files} == {("Patient", 200)}
    _log_lines_say_the_same(log.getvalue(), found)


def _log_lines_say_the_same(log: str, found: list[dict[str, Any]]) -> None:
    told = [line for line in map(json.loads, log.splitlines()) if line["logger"] == "pipeline.access"]
    assert len(told) == len(found)
    for line, entry in zip(told, found, strict=True):
        kept = {name: value for name, value in entry.items() if value is not None and name not in ("id", "at")}
        assert {name: line.get(name) for name in kept} == kept


def test_refusals_are_told_with_their_codes(epic: HostileEpic, tmp_path: Path, installed_url: str) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url)
    before = last_id(runtime)
    stranger = runtime_of(epic, tmp_path, installed_url, client_id="stranger")
    with pytest.raises(AuthenticationRefused):
        exported(stranger)
    refusal = FhirRefusal(403, "forbidden", "Not for Anna Miller.")
    epic.answer = lambda _, request: outcome_response(refusal) if request.url.path.endswith("$export") else None
    with pytest.raises(RemoteRefused):
        exported(runtime)
    epic.answer = lambda _, request: Response(status_code=401) if request.url.path.endswith("$export") else None
    with pytest.raises(AuthenticationRefused):
        exported(runtime)
    refused = [entry for entry in entries(runtime, before) if entry["outcome"] == "refused"]
    assert [(entry["event"], entry["status"], entry["detail"], entry["client_id"]) for entry in refused] == [
        ("token", 400, "invalid_client", "stranger"),
        ("kick-off", 403, "forbidden", CLIENT_ID),
        ("kick-off", 401, None, CLIENT_ID),
        ("kick-off", 401, None, CLIENT_ID),
    ]
    assert "Miller" not in str(entries(runtime, before))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE access_log SET site = 'x'",
        "DELETE FROM access_log",
        "TRUNCATE access_log",
        "TRUNCATE access_log CASCADE",
    ],
)
def test_nothing_is_taken_out_of_the_log(epic: HostileEpic, tmp_path: Path, installed_url: str, statement: str) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url)
    with site_session(runtime, site_of(runtime)) as session:
        session.transport.record(AccessEntry("read"))
    before = entries(runtime)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="new rows only"), runtime.connect() as connection:
        connection.execute(statement)
    assert entries(runtime) == before != []


def test_recording_waits_for_nothing(epic: HostileEpic, tmp_path: Path, installed_url: str) -> None:
    """While the table is locked, entries are taken at once; when it is free again, they are all written."""
    runtime = runtime_of(epic, tmp_path, installed_url)
    before = last_id(runtime)
    with runtime.connect() as blocker, WarehouseAccessLog(runtime.connect, site_of(runtime), runtime.clock) as log:
        blocker.execute("LOCK TABLE access_log IN ACCESS EXCLUSIVE MODE")
        started = time.perf_counter()
        for number in range(5000):
            log.record(AccessEntry("file", bytes=number))
        seconds = time.perf_counter() - started
        blocker.rollback()
    assert seconds < 2.0  # 400 µs each on the slowest machine; measured: 5 to 10
    assert [entry["bytes"] for entry in entries(runtime, before)] == list(range(5000))


def test_a_warehouse_that_cannot_be_written_for_a_while(
    epic: HostileEpic, tmp_path: Path, installed_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url)
    before = last_id(runtime)
    down = [True]

    def connect() -> Any:
        if down[0]:
            raise WarehouseError("down")
        return runtime.connect()

    with WarehouseAccessLog(connect, site_of(runtime), runtime.clock) as log:
        log.record(AccessEntry("kick-off"))
        assert not log.flush()
        down[0] = False
        log.record(AccessEntry("delete"))
    assert [entry["event"] for entry in entries(runtime, before)] == ["kick-off", "delete"]
    down[0] = True
    with WarehouseAccessLog(connect, site_of(runtime), runtime.clock) as log:
        log.record(AccessEntry("read"))
    assert "1 entries of the access log could not be written" in caplog.text


CHILD = """
from pipeline.extract import bulk
from pipeline.warehouse.runtime import Runtime
runtime = Runtime.from_environment()
bulk.export_site(runtime, runtime.settings.site("site_a"))
"""


def child_environment(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "EPIC_OMOP_HOME": str(settings.home),
        "EPIC_OMOP_DATABASE_URL": settings.database_url or "",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }


def test_a_killed_process_leaves_its_entries_up_to_the_last(tmp_path: Path, installed_url: str) -> None:
    with running(HostileEpic(ShiftedClock(), groups={"g1": small_group(30)})) as epic:
        home = tmp_path / "home"
        register_site(home, "site_a", site_entry(epic, tmp_path))
        settings = load_settings({"EPIC_OMOP_HOME": str(home), "EPIC_OMOP_DATABASE_URL": installed_url})
        runtime = Runtime(settings, epic.clock)
        with runtime.connect() as connection:
            connection.execute("TRUNCATE export_job, export_file, cool_down")
        before = last_id(runtime)
        files: list[str] = []
        pids: list[int] = []

        def kill_at_the_fifth_file(_: int, request: Request) -> Response | None:
            if not is_file(request.url.path):
                return None
            files.append(request.url.path)
            if len(files) == 5:
                deadline = time.monotonic() + 10
                while len(_files(runtime, before)) < 4 and time.monotonic() < deadline:
                    time.sleep(0.05)
                os.kill(pids[0], signal.SIGKILL)
            return None

        epic.answer = kill_at_the_fifth_file
        with subprocess.Popen([sys.executable, "-c", CHILD], env=child_environment(settings)) as child:
            pids.append(child.pid)
            assert child.wait(timeout=120) == -signal.SIGKILL
        assert len(_files(runtime, before)) == 4
        assert "kick-off" in {entry["event"] for entry in entries(runtime, before)}


def _files(runtime: Runtime, before: int) -> list[dict[str, Any]]:
    return [entry for entry in entries(runtime, before) if entry["event"] == "file"]


# --- tokens in the middle of a long download


def test_a_token_is_renewed_early_in_the_middle_of_a_download(tmp_path: Path, installed_url: str) -> None:
    epic = HostileEpic(ShiftedClock(), groups={"g1": small_group(30)}, options={"token_seconds": 100})

    def slow(_: int, request: Request) -> Response | None:
        if is_file(request.url.path):
            epic.clock.sleep(18)  # after the token was chosen, before it is checked
        return None

    epic.answer = slow
    with running(epic):
        runtime = runtime_of(epic, tmp_path, installed_url)
        before = last_id(runtime)
        assert sum(exported(runtime)) == 30
    found = entries(runtime, before)
    assert not [entry for entry in found if entry["status"] == 401]
    assert sum(entry["event"] == "token" for entry in found) == 3
    assert len({token for _, path, token in epic.requests if "/BulkRequest/" in path}) >= 3


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_clock_that_is_wrong_is_named_and_holds_nothing_up(
    epic: HostileEpic, tmp_path: Path, installed_url: str, caplog: pytest.LogCaptureFixture, minutes: int
) -> None:
    """The simulated Epic refuses assertions that are from the future, too old, or valid for too long."""
    runtime = runtime_of(epic, tmp_path, installed_url)
    wrong = ShiftedClock(epic.clock.shift + timedelta(minutes=minutes))
    assert sum(exported(Runtime(runtime.settings, wrong))) == 30
    assert "This machine's clock differs from that of site site_a by" in caplog.text


# --- request budget


def test_requests_are_counted_and_what_is_unused_is_given_back(
    epic: HostileEpic, tmp_path: Path, installed_url: str
) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url)
    exported(runtime)
    assert counted(runtime) == len(epic.requests) == 16
    with runtime.connect() as connection:
        (found,) = site_statuses(connection, runtime, None)
        assert (_requests(found), found.requests.is_spent) == ("16", False)
    with site_session(runtime, site_of(runtime)) as session:
        session.transport.fetch(RemoteRequest("A test", f"{epic.fhir_url}/metadata"))
        assert counted(runtime) == 16 + 50  # set apart while the session lasts
    assert counted(runtime) == 17


def test_a_spent_budget_stops_with_the_time_and_the_next_hour_goes_on(
    epic: HostileEpic, tmp_path: Path, installed_url: str
) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url, request_budget_per_hour=10)
    hour = epic.clock.now().replace(minute=0, second=0, microsecond=0)
    with pytest.raises(RequestBudgetSpent, match="budget of 10 requests an hour at site site_a is spent") as caught:
        exported(runtime)
    assert caught.value.next_try == hour + timedelta(hours=1)
    assert caught.value.exit_code == 75
    assert f"{caught.value.next_try:%Y-%m-%d %H:%M} UTC" in caught.value.advice
    assert len(epic.requests) == counted(runtime) == 10
    assert [pause for pause in epic.clock.slept if pause > 0] == [30.0, 30.0]  # the last fifth of the budget
    with runtime.connect() as connection:
        (job,) = export_jobs.list_jobs(connection)
        assert (job.state, "is spent" in (job.error or "")) == ("complete", True)
        (found,) = site_statuses(connection, runtime, None)
        assert _requests(found) == "10 of 10, spent"
    with pytest.raises(RequestBudgetSpent):
        exported(runtime)
    assert len(epic.requests) == 10
    epic.clock.sleep((caught.value.next_try - epic.clock.now()).total_seconds())
    assert sum(exported(runtime)) == 30
    files = [path for path in epic.paths if is_file(path)]
    assert len(files) == len(set(files)) == 10


def test_a_kick_off_that_the_budget_forbids_starts_nothing(
    epic: HostileEpic, tmp_path: Path, installed_url: str
) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url, request_budget_per_hour=2)
    with pytest.raises(RequestBudgetSpent):
        exported(runtime)
    assert not [path for path in epic.paths if "$export" in path]
    with runtime.connect() as connection:
        (job,) = export_jobs.list_jobs(connection)
        assert job.state == "skipped"
        assert export_jobs.cool_down(connection, "site_a", CLIENT_ID, "g1", epic.clock.now()) is None


def test_a_poll_that_the_budget_forbids_is_asked_again_later(
    epic: HostileEpic, tmp_path: Path, installed_url: str
) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url, request_budget_per_hour=3, poll_ceiling_seconds=7200)
    job = bulk.open_or_adopt(runtime, site_of(runtime), "g1")
    polled = bulk.poll_once(runtime, job)
    assert polled.state == "running"
    assert polled.next_poll_at is not None
    assert polled.next_poll_at >= epic.clock.now().replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    assert len(epic.requests) == 3


def test_a_short_call_does_not_wait_for_its_turn(epic: HostileEpic, tmp_path: Path, installed_url: str) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url, request_budget_per_hour=5)
    request = RemoteRequest("A test", f"{epic.fhir_url}/metadata")
    with site_session(runtime, site_of(runtime)) as session:
        for _ in range(4):
            session.transport.fetch(request)
        with pytest.raises(RequestBudgetSpent, match="nearly spent") as caught:
            session.within(20).transport.fetch(request)
        assert caught.value.next_try is not None
        assert timedelta(seconds=20) < caught.value.next_try - epic.clock.now() <= timedelta(seconds=30)
        session.transport.fetch(request)
    assert len(epic.requests) == 5


COUNTING = """
import sys
from datetime import datetime
from pipeline.core.clock import ManualClock
from pipeline.core.errors import RequestBudgetSpent
from pipeline.warehouse.runtime import Runtime
from pipeline.extract.request_budget import WarehouseRequestBudget
runtime = Runtime.from_environment()
clock = ManualClock(datetime.fromisoformat(sys.argv[1]))
taken = 0
with WarehouseRequestBudget(runtime.connect, runtime.settings.site("site_a"), clock) as budget:
    try:
        while True:
            budget.take()
            taken += 1
    except RequestBudgetSpent:
        pass
print(taken)
"""


def test_two_processes_share_one_budget(epic: HostileEpic, tmp_path: Path, installed_url: str) -> None:
    home = tmp_path / "home"
    runtime_of(epic, tmp_path, installed_url)
    register_site(home, "site_a", site_entry(epic, tmp_path, request_budget_per_hour=300))
    settings = load_settings({"EPIC_OMOP_HOME": str(home), "EPIC_OMOP_DATABASE_URL": installed_url})
    command = [sys.executable, "-c", COUNTING, NOON.isoformat()]
    children = [
        subprocess.Popen(command, env=child_environment(settings), stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    taken = [int(child.communicate(timeout=120)[0]) for child in children]
    assert sum(taken) == 300
    with Runtime(settings).connect() as connection:
        assert requests_in_hour(connection, "site_a", NOON) == 300


def test_the_count_survives_restarts_and_a_crash_counts_on_the_safe_side(
    epic: HostileEpic, tmp_path: Path, installed_url: str
) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url, request_budget_per_hour=1000)
    clock = ManualClock(NOON)
    for _ in range(3):
        with WarehouseRequestBudget(runtime.connect, site_of(runtime), clock) as budget:
            for _ in range(7):
                budget.take()
    with runtime.connect() as connection:
        assert requests_in_hour(connection, "site_a", NOON) == 21
    crashed = WarehouseRequestBudget(runtime.connect, site_of(runtime), clock)
    crashed.take()
    with runtime.connect() as connection:
        assert requests_in_hour(connection, "site_a", NOON) == 21 + 20  # a fiftieth of the budget was set apart
    clock.advance(3600)
    with WarehouseRequestBudget(runtime.connect, site_of(runtime), clock) as budget:
        budget.take()
        clock.advance(3600)
        budget.take()
    with runtime.connect() as connection:
        counts = [requests_in_hour(connection, "site_a", NOON + timedelta(hours=hours)) for hours in (1, 2, 3)]
    assert counts == [1, 1, 0]


def test_counting_is_cheap(epic: HostileEpic, tmp_path: Path, installed_url: str) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url)
    connections: list[int] = []

    def connect() -> Any:
        connections.append(1)
        return runtime.connect()

    with WarehouseRequestBudget(connect, site_of(runtime), ManualClock(NOON)) as budget:
        for _ in range(1000):
            budget.take()
    assert len(connections) == 20


# --- Dagster


def test_a_kick_off_in_dagster_is_tried_again_when_the_hour_is_over(
    epic: HostileEpic, tmp_path: Path, installed_url: str
) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url, request_budget_per_hour=4)
    with WarehouseRequestBudget(runtime.connect, site_of(runtime), epic.clock) as budget:
        for _ in range(4):
            budget.take()
    spent = epic.clock.now()
    with dg.DagsterInstance.ephemeral() as instance:
        (state,) = kick_off_groups(runtime, checked_request(runtime.settings, site_of(runtime)), instance)
    assert state.state == "running"
    assert epic.clock.now().hour == (spent + timedelta(hours=1)).hour
    with runtime.connect() as connection:
        assert [job.state for job in export_jobs.list_jobs(connection)] == ["running", "skipped"]


def test_an_ingest_that_the_budget_stopped_gets_its_attempt_at_that_time(
    epic: HostileEpic, tmp_path: Path, installed_url: str
) -> None:
    runtime = runtime_of(epic, tmp_path, installed_url, request_budget_per_hour=9)
    with pytest.raises(RequestBudgetSpent) as caught:
        exported(runtime)
    with runtime.connect() as connection:
        (job,) = export_jobs.list_jobs(connection)
    postpone(runtime, job.export_id, caught.value)
    with runtime.connect() as connection:
        (later,) = export_jobs.list_jobs(connection)
    assert (later.attempt, later.next_poll_at) == (job.attempt + 1, caught.value.next_try)


def test_a_warehouse_of_an_earlier_version_says_what_to_do(
    epic: HostileEpic, tmp_path: Path, database_url: str
) -> None:
    install_schemas(database_url, cdm="cdm", vocab="vocab", etl="etl")
    runtime = runtime_of(epic, tmp_path, database_url)
    with runtime.connect() as connection:
        connection.execute("DROP TABLE request_count")
    with pytest.raises(WarehouseError, match="db init"), site_session(runtime, site_of(runtime)) as session:
        session.transport.fetch(RemoteRequest("A test", f"{epic.fhir_url}/metadata"))
    assert epic.requests == []
