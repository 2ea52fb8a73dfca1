"""Every response of the table in docs/extraction.md, at every exchange of an export: no export is stuck, no night is lost.

The server answers one exchange otherwise, over real HTTP. Each case says how the export stands after the first run, and
then, whatever it was: when the server is well again and the group's window has passed, the group is exported whole,
without anything done by hand.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.requests import Request
from starlette.responses import Response

from pipeline.core.errors import CooldownActive, EpicOmopError, RemoteUnavailable, SiteBusy, UsageError
from pipeline.core.settings import Settings, SiteSettings
from pipeline.extract import bulk
from pipeline.extract.notes import export_notes
from pipeline.landing.reading import open_landed
from pipeline.load import corrections
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.next_kick_offs import NextKickOff, due_kick_offs, next_kick_offs
from pipeline.warehouse.runtime import Runtime
from tests.hostile_epic import GivenLines, HostileEpic, ShiftedClock, is_file, running, site_entry

PATIENTS = tuple(orjson.dumps({"resourceType": "Patient", "id": f"p{number}", "note": "ä"}) for number in range(3))
OBSERVATIONS = tuple(orjson.dumps({"resourceType": "Observation", "id": f"o{number}"}) for number in range(3))
GROUP = GivenLines({"Patient": PATIENTS, "Observation": OBSERVATIONS})
EVERY_LINE = sorted((*PATIENTS, *OBSERVATIONS))

Attack = Callable[[HostileEpic], None]


@pytest.fixture
def epic() -> Iterator[HostileEpic]:
    with running(HostileEpic(ShiftedClock(), groups={"g1": GROUP})) as epic:
        yield epic


@pytest.fixture
def runtime(tmp_path: Path, epic: HostileEpic, installed_url: str) -> Runtime:
    entry = site_entry(epic, tmp_path, resource_types=["Patient", "Observation"])
    settings = Settings(
        home=tmp_path / "home",
        database_url=installed_url,
        sites={"site_a": SiteSettings(name="site_a", **entry)},
    )
    runtime = Runtime(settings, epic.clock)
    with runtime.connect() as connection:
        connection.execute("TRUNCATE export_job, export_file, export_gap, export_outcome, cool_down, next_kick_off")
    return runtime


def site_of(runtime: Runtime) -> SiteSettings:
    return runtime.settings.site("site_a")


def run(runtime: Runtime) -> EpicOmopError | None:
    """What `epic-omop export` does for the one group; the failure, if there is one."""
    return bulk.export_groups(runtime, site_of(runtime), ("g1",)).failures.get("g1")


def job(runtime: Runtime) -> ExportJob:
    """The newest one."""
    with runtime.connect() as connection:
        return export_jobs.list_jobs(connection)[0]


def gaps(runtime: Runtime) -> list[tuple[str, str]]:
    with runtime.connect() as connection:
        return connection.execute(
            "SELECT resource_type, reason FROM export_gap ORDER BY export_id, file_number"
        ).fetchall()


def planned(runtime: Runtime) -> list[NextKickOff]:
    with runtime.connect() as connection:
        return next_kick_offs(connection, site_of(runtime))


def landed_lines(runtime: Runtime) -> list[bytes]:
    landed = runtime.landing.open("site_a", job(runtime).export_id)
    return sorted(line for file in landed.files for line in open_landed(file.path).read().splitlines())


def publish(runtime: Runtime) -> None:
    """As if what is landed had been loaded."""
    with runtime.connect() as connection:
        connection.execute("UPDATE export_job SET state = 'published' WHERE state = 'landed'")


def heal(epic: HostileEpic) -> None:
    epic.answer, epic.edit_manifest = lambda number, request: None, lambda manifest: None


# --- what is done to the server


def at(exchange: str, make: Callable[[], Response], *, end: str = "") -> Attack:
    """Every request of that exchange (of files: of those whose path ends so) is answered with this."""

    def attack(epic: HostileEpic) -> None:
        def answer(_: int, request: Request) -> Response | None:
            path = request.url.path
            of_job = "/BulkRequest/" in path and not is_file(path)
            hit = {
                "token": path.endswith("/token"),
                "kick-off": path.endswith("$export"),
                "status": of_job and request.method == "GET",
                "delete": of_job and request.method == "DELETE",
                "file": is_file(path) and path.endswith(end),
                "side": path.startswith("/side/"),
            }
            return make() if hit[exchange] else None

        epic.answer = answer

    return attack


def outcome(status: int, code: str, text: str = "", **headers: str) -> Callable[[], Response]:
    issue = {"severity": "error", "code": code, "details": {"text": text}}
    body = orjson.dumps({"resourceType": "OperationOutcome", "issue": [issue]})
    return lambda: Response(body, status, headers)


def edited(change: Callable[[dict[str, Any]], None]) -> Attack:
    def attack(epic: HostileEpic) -> None:
        epic.edit_manifest = change

    return attack


def both(*attacks: Attack) -> Attack:
    def attack(epic: HostileEpic) -> None:
        for one in attacks:
            one(epic)

    return attack


def with_time(value: object) -> Attack:
    return edited(lambda manifest: manifest.update(transactionTime=value))


def first_file(**changes: Any) -> Attack:
    return edited(lambda manifest: manifest["output"][0].update(changes))


def side_file(name: str, **entry: Any) -> Attack:
    """The manifest names one more file, under `error` or `deleted`."""
    return edited(lambda manifest: manifest.update({name: [{"url": "/side/1", **entry}]}))


def body(content: bytes, **headers: str) -> Callable[[], Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: Response(content, headers=named)


HTML = b"<!doctype html>\n<html><body>\n<p>We are back at 6 am</p>\n</body></html>\n"
NOT_NDJSON: dict[str, Callable[[], Response]] = {
    "an HTML page": body(HTML),
    "a JSON array": body(b"[" + b",".join(PATIENTS) + b"]"),
    "a JSON array over lines": body(b"[\n" + b",\n".join(PATIENTS) + b"\n]\n"),
    "UTF-16": body("\n".join(line.decode() for line in PATIENTS).encode("utf-16")),
    "gzip in gzip": body(gzip.compress(gzip.compress(b"\n".join(PATIENTS))), Content_Encoding="gzip"),
    "gzip without saying so": body(gzip.compress(b"\n".join(PATIENTS))),
    "another type": body(b"\n".join(OBSERVATIONS)),
    "JSON that is no resource": body(b"{}\n[]\n17\n"),
    "a Bundle": body(orjson.dumps({"resourceType": "Bundle", "entry": [{"resource": {"resourceType": "Patient"}}]})),
}


# --- how the export stands


@dataclass(frozen=True)
class Case:
    """After the first run: the state of the export, whether its job was deleted on the server, what is lacking, and
    whether a next kick-off is planned. `later`: the same when the server is as bad a window later."""

    attack: Attack
    state: str
    deleted: bool = False
    gaps: tuple[tuple[str, str], ...] = ()
    planned: bool = False
    later: tuple[str, tuple[tuple[str, str], ...]] | None = None


LANDED: Mapping[str, Any] = {"state": "landed", "deleted": True}
PATIENT_UNUSABLE = ("landed", (("Patient", "unusable"),))

CASES: dict[str, Case] = {
    # the token, and the kick-off
    "token endpoint down": Case(at("token", outcome(503, "exception")), "failed", planned=True),
    "token refused": Case(at("token", body(b'{"error":"invalid_client"}')), "failed"),
    **{
        f"kick-off {status}": Case(at("kick-off", outcome(status, "exception")), "failed", planned=True)
        for status in (429, 500, 502, 503)
    },
    "kick-off 400 that calls itself transient": Case(at("kick-off", outcome(400, "transient")), "failed", planned=True),
    **{
        f"kick-off {status}, which says nothing of an export": Case(
            at("kick-off", outcome(status, "timeout")), "failed", planned=True
        )
        for status in (408, 504)
    },
    **{
        f"too recently with {status}": Case(
            at("kick-off", outcome(status, "business-rule", "this client has requested this Group too recently")),
            "skipped",
            planned=True,
        )
        for status in (400, 429, 500)
    },
    **{
        f"kick-off refused with {status}": Case(at("kick-off", outcome(status, "invalid")), "failed")
        for status in (400, 401, 403, 404, 422)
    },
    "kick-off 200": Case(at("kick-off", body(HTML)), "failed"),
    "kick-off 202 without an address": Case(at("kick-off", lambda: Response(b"", 202)), "failed"),
    **{
        f"kick-off 202 with {location!r}": Case(
            at("kick-off", lambda location=location: Response(b"", 202, {"Content-Location": location})), "failed"
        )
        for location in (
            "http://[",
            "http://10.1.2.3/status",
            "http://169.254.169.254/latest",
            "http://localhost:1/x",
            "ftp://h/1",
            "http://user:password@127.0.0.1/status",
        )
    },
    # the status
    **{
        f"status {status}": Case(at("status", outcome(status, "exception")), "running")
        for status in (408, 429, 500, 502, 503)
    },
    "status 422 that calls itself transient": Case(at("status", outcome(422, "transient")), "running"),
    **{f"status {status}": Case(at("status", outcome(status, "login")), "running") for status in (401, 403)},
    **{f"status {status}": Case(at("status", outcome(status, "invalid")), "failed") for status in (400, 422)},
    **{f"status {status}": Case(at("status", outcome(status, "not-found")), "gone") for status in (404, 410)},
    **{
        f"status 200 with {name}": Case(at("status", body(content)), "running", later=("failed", ()))
        for name, content in {
            "an HTML page": HTML,
            "half a manifest": b'{"transactionTime": "2026-01-01T00:00:00Z", "output": [{"typ',
            "an outcome": b'{"resourceType":"OperationOutcome","issue":[]}',
            "nothing": b"",
            "an empty object": b"{}",
            "output that is null": b'{"transactionTime": "2026-01-01T00:00:00Z", "output": null}',
        }.items()
    },
    # the manifest
    **{
        f"transactionTime {value!r}": Case(with_time(value), **LANDED)
        for value in (
            None,
            "",
            "yesterday",
            17,
            "9999-12-31T23:59:59-12:00",
            "9999-12-31T23:59:59Z",
            "2099-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z",
        )
    },
    **{
        f"a file at {url!r}": Case(first_file(url=url), "landed", gaps=(("Patient", "unusable"),))
        for url in (
            "http://h/\0",
            "",
            "file:///etc/passwd",
            "http://10.1.2.3/1",
            "http://localhost:1/x",
        )
    },
    "a file without address": Case(
        edited(lambda manifest: manifest["output"][0].pop("url")), "landed", gaps=(("Patient", "unusable"),)
    ),
    **{
        f"all files at {url!r}": Case(
            edited(lambda manifest, url=url: [file.update(url=url) for file in manifest["output"]]), "failed"
        )
        for url in ("http://h/\0", "http://10.1.2.3/1")
    },
    "error that is a text": Case(
        edited(lambda manifest: manifest.update(error="none")), "landed", gaps=(("OperationOutcome", "unusable"),)
    ),
    "deleted that is null": Case(edited(lambda manifest: manifest.update(deleted=None, error={})), **LANDED),
    "a type that is a path": Case(first_file(type="../../x"), "failed"),
    **{
        f"output {value!r}": Case(edited(lambda manifest, value=value: manifest.update(output=value)), "failed")
        for value in ({"a": 1}, {}, False, 0, "")
    },
    "a next page at an internal host": Case(
        edited(lambda manifest: manifest.update(link=[{"relation": "next", "url": "http://10.1.2.3/2"}])), "failed"
    ),
    "a next page with NUL": Case(
        edited(lambda manifest: manifest.update(link=[{"relation": "next", "url": "/2\0"}])), "failed"
    ),
    # files
    **{
        f"one file {status}": Case(
            at("file", outcome(status, "not-found"), end="000001"), "landed", gaps=(("Patient", "lost"),)
        )
        for status in (404, 410)
    },
    "all files 404": Case(at("file", outcome(404, "not-found")), "failed"),
    "one file 403": Case(at("file", outcome(403, "forbidden"), end="000001"), "complete", later=PATIENT_UNUSABLE),
    "one file 500": Case(at("file", outcome(500, "exception"), end="000001"), "complete", later=PATIENT_UNUSABLE),
    "one file cut": Case(
        at("file", lambda: Response(b'{"res', headers={"Content-Length": "99"}), end="000001"),
        "complete",
        later=PATIENT_UNUSABLE,
    ),
    "one file at another host": Case(first_file(url="https://files.example.org/1"), "complete", later=PATIENT_UNUSABLE),
    "all files 401": Case(at("file", outcome(401, "login")), "complete", later=("complete", ())),
    "all files 503": Case(at("file", outcome(503, "exception")), "complete", later=("failed", ())),
    **{
        f"one file is {name}": Case(at("file", make, end="000001"), "complete", later=PATIENT_UNUSABLE)
        for name, make in NOT_NDJSON.items()
    },
    **{
        f"count {count}": Case(first_file(count=count), gaps=(("Patient", "count"),), **LANDED)
        for count in (0, 2, 4, 10**12)
    },
    **{f"count {count!r}": Case(first_file(count=count), **LANDED) for count in (-1, 2**63, "2", None, 3.5)},
    "count of the messages": Case(
        both(side_file("error", count=9), at("side", body(b'{"resourceType":"OperationOutcome","issue":[]}\n'))),
        **LANDED,
    ),
    "count of the deleted": Case(
        both(side_file("deleted", type="Bundle", count=9), at("side", body(b'{"resourceType":"Bundle"}\n'))), **LANDED
    ),
    "messages lost": Case(
        both(side_file("error"), at("side", outcome(404, "not-found"))),
        "landed",
        gaps=(("OperationOutcome", "lost"),),
    ),
    "messages that are a page": Case(
        both(side_file("error"), at("side", body(HTML))), "landed", gaps=(("OperationOutcome", "unusable"),)
    ),
    # the DELETE
    **{
        f"DELETE {status}": Case(at("delete", lambda status=status: Response(b"", status)), **LANDED)
        for status in (200, 202, 204, 404, 410)
    },
    **{
        f"DELETE {status}": Case(at("delete", lambda status=status: Response(b"", status)), "landed")
        for status in (400, 401, 403, 429, 500, 503)
    },
}


@pytest.mark.deep
@pytest.mark.parametrize("name", CASES)
def test_no_response_leaves_an_export_stuck(runtime: Runtime, epic: HostileEpic, name: str) -> None:
    case = CASES[name]
    case.attack(epic)
    error = run(runtime)
    found = job(runtime)
    assert found.state == case.state, found.error
    assert (error is None) == (case.state == "landed")
    assert (found.deleted_at is not None) == case.deleted
    assert gaps(runtime) == list(case.gaps)
    assert bool(planned(runtime)) == case.planned
    if case.later:
        epic.clock.sleep(24.5 * 3600)
        run(runtime)
        assert (job(runtime).state, tuple(gaps(runtime))) == case.later
        assert job(runtime).deleted_at is None
    heal(epic)
    publish(runtime)
    for _ in range(3):
        epic.clock.sleep(24.5 * 3600)
        if run(runtime) is None and landed_lines(runtime) == EVERY_LINE and not planned(runtime):
            return
        publish(runtime)
    pytest.fail(f"the group is not exported again: {job(runtime)}")


# --- a kick-off that was refused for now


NOW = "now"
RETRY_AFTER: dict[str, tuple[Callable[[datetime], str], timedelta]] = {
    "seconds": (lambda now: "1200", timedelta(minutes=20)),
    "few seconds": (lambda now: "2", timedelta(minutes=1)),
    "a date": (lambda now: format_datetime(now + timedelta(hours=1), usegmt=True), timedelta(hours=1)),
    "epoch seconds": (lambda now: str(int((now + timedelta(hours=2)).timestamp())), timedelta(hours=2)),
    "epoch milliseconds": (lambda now: str(int((now + timedelta(hours=2)).timestamp()) * 1000), timedelta(hours=2)),
    "longer than the window": (lambda now: str(3 * 86_400), timedelta(hours=24)),
    "the year 5138": (lambda now: "99999999999", timedelta(hours=24)),
    **{
        name: (lambda now, text=text: text, timedelta(minutes=10))
        for name, text in {"0": "0", "negative": "-5", "garbage": "soon, please", "empty": ""}.items()
    },
    "a past date": (lambda now: format_datetime(now - timedelta(days=1), usegmt=True), timedelta(minutes=10)),
}


@pytest.mark.parametrize("form", RETRY_AFTER)
def test_a_kick_off_that_is_refused_for_now_keeps_what_the_server_asks(
    runtime: Runtime, epic: HostileEpic, form: str
) -> None:
    text, wait = RETRY_AFTER[form]
    at("kick-off", lambda: Response(b"", 429, {"Retry-After": text(epic.clock.now())}))(epic)
    error = run(runtime)
    assert isinstance(error, RemoteUnavailable)
    (entry,) = planned(runtime)
    assert abs(entry.next_try - epic.clock.now() - wait) < timedelta(seconds=30)
    assert error.next_try == entry.next_try
    assert f"{entry.next_try:%Y-%m-%d %H:%M} UTC" in error.advice
    with runtime.connect() as connection:
        assert due_kick_offs(connection, site_of(runtime), entry.next_try - timedelta(seconds=1)) == []
        assert due_kick_offs(connection, site_of(runtime), entry.next_try) == [entry]
    heal(epic)
    epic.clock.sleep((entry.next_try - epic.clock.now()).total_seconds())
    assert run(runtime) is None
    assert planned(runtime) == []


def test_the_back_off_doubles_inside_the_window_and_then_ends(runtime: Runtime, epic: HostileEpic) -> None:
    at("kick-off", outcome(503, "exception"))(epic)
    begun, waits = epic.clock.now(), []
    while True:
        assert run(runtime) is not None
        if not planned(runtime):
            break
        (entry,) = planned(runtime)
        waits.append(round((entry.next_try - epic.clock.now()).total_seconds() / 60))
        epic.clock.sleep((entry.next_try - epic.clock.now()).total_seconds())
    assert waits[:6] == [10, 20, 40, 80, 120, 120]
    assert timedelta(hours=21) < epic.clock.now() - begun <= timedelta(hours=24, minutes=5)


def test_a_server_that_cannot_be_reached(runtime: Runtime, epic: HostileEpic, tmp_path: Path) -> None:
    site = site_of(runtime).model_copy(update={"fhir_url": "http://127.0.0.1:9/fhir"})
    away = Runtime(runtime.settings.model_copy(update={"sites": {"site_a": site}}), epic.clock)
    assert isinstance(run(away), RemoteUnavailable)
    (entry,) = planned(runtime)
    assert entry.attempt == 1
    assert run(runtime) is None, "somebody who runs it by hand need not wait for the back-off"
    assert planned(runtime) == []


def test_a_refusal_soon_after_the_window_is_one_of_the_clocks(runtime: Runtime, epic: HostileEpic) -> None:
    """A site whose window is a few minutes longer costs ten minutes, not another day."""
    assert run(runtime) is None
    publish(runtime)
    epic.clock.sleep(24 * 3600 + 120)
    at("kick-off", outcome(400, "business-rule", "this client has requested this Group too recently"))(epic)
    assert isinstance(run(runtime), CooldownActive)
    (entry,) = planned(runtime)
    assert entry.next_try - epic.clock.now() <= timedelta(minutes=10)


# --- the time of an export


@pytest.mark.parametrize(
    ("stated", "own"), [(timedelta(minutes=9), False), (timedelta(minutes=11), True), (timedelta(days=9999), True)]
)
def test_a_time_ahead_of_our_clock(runtime: Runtime, epic: HostileEpic, stated: timedelta, own: bool) -> None:
    said = (epic.clock.now() + stated).replace(microsecond=0)
    with_time(said.isoformat())(epic)
    assert run(runtime) is None
    found = job(runtime)
    assert found.transaction_time == (found.requested_at if own else said)
    with runtime.connect() as connection:
        told = " ".join(export_notes(connection, [found.export_id]).sentences())
    assert ("ahead of this machine's clock" in told) is own
    assert runtime.landing.open("site_a", found.export_id).transaction_time == found.transaction_time


@pytest.mark.parametrize("stated", ["0001-01-02T00:00:00Z", "1970-01-01T00:00:00Z", "2000-01-01T00:10:00-05:00"])
def test_a_time_of_a_clock_that_was_reset(runtime: Runtime, epic: HostileEpic, stated: str) -> None:
    with_time(stated)(epic)
    assert run(runtime) is None
    found = job(runtime)
    assert found.transaction_time == found.requested_at, "else whatever came before would be newer"
    with runtime.connect() as connection:
        told = " ".join(export_notes(connection, [found.export_id]).sentences())
    assert "before there was FHIR" in told


@pytest.mark.parametrize("keeps", [True, False])
def test_somebody_who_is_there_is_asked(runtime: Runtime, epic: HostileEpic, keeps: bool) -> None:
    said = datetime(2099, 1, 1, tzinfo=UTC)
    with_time(said.isoformat())(epic)
    asked: list[datetime] = []

    def keep(stated: datetime, now: datetime) -> bool:
        asked.append(stated)
        return keeps

    bulk.export_groups(runtime, site_of(runtime), ("g1",), keep_future_time=keep)
    found = job(runtime)
    assert asked == [said]
    assert found.transaction_time == (said if keeps else found.requested_at)
    assert len(found.notes) == 1


# --- given up by hand


@dataclass
class Asked:
    """What was asked of the server after a moment."""

    epic: HostileEpic
    before: int = field(default=0)

    def __post_init__(self) -> None:
        self.before = len(self.epic.paths)

    @property
    def methods(self) -> list[str]:
        return [path.split()[0] for path in self.epic.paths[self.before :] if "/BulkRequest/" in path]


ABANDONED: dict[str, Attack] = {
    "running": at("status", lambda: Response(b"", 202)),
    "complete": at("file", outcome(500, "exception"), end="000001"),
    "landed": at("delete", outcome(403, "forbidden")),
}


@pytest.mark.deep
@pytest.mark.parametrize("state", ABANDONED)
@pytest.mark.parametrize("server_is_down", [False, True])
def test_any_open_export_can_be_given_up(runtime: Runtime, epic: HostileEpic, state: str, server_is_down: bool) -> None:
    opened = bulk.open_or_adopt(runtime, site_of(runtime), "g1")
    ABANDONED[state](epic)
    if state != "running":
        run(runtime)
    assert job(runtime).state == state
    heal(epic)
    if server_is_down:
        at("delete", outcome(503, "exception"))(epic)
    asked = Asked(epic)
    if state == "landed":
        with (
            runtime.connect() as other,
            export_jobs.site_lock(other, "site_a", export_jobs.SiteWork.INGEST),
            pytest.raises(SiteBusy),
        ):
            corrections.abandon(runtime, site_of(runtime), "g1")  # while it is loaded
    result = corrections.abandon(runtime, site_of(runtime), "g1")
    assert (result.export_id, asked.methods) == (opened.export_id, ["DELETE"])
    assert (result.not_deleted is not None) is server_is_down
    assert job(runtime).state == "failed"
    assert runtime.landing.is_finished("site_a", opened.export_id) is (state == "landed")
    with pytest.raises(UsageError, match="no open export"):
        corrections.abandon(runtime, site_of(runtime), "g1")
    heal(epic)
    assert isinstance(run(runtime), CooldownActive), "Epic's window holds for what is given up as well"
    (entry,) = planned(runtime)
    assert entry.next_try == result.next_try
    epic.clock.sleep((entry.next_try - epic.clock.now()).total_seconds())
    assert run(runtime) is None
    assert landed_lines(runtime) == EVERY_LINE
