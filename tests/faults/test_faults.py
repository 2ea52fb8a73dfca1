"""Every fault that the simulated Epic plays, one case each, over real HTTP into a real warehouse.

A case either ends with every line landed once, or stops with an error that says what to do; then the same command is
run again on a server without faults, goes on where the first one stood, and ends whole. Cases that change what lines
hold are loaded as well, and compared with the load of the undisturbed export.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.commands.cli import app as program
from pipeline.core.errors import (
    AuthenticationRefused,
    CooldownActive,
    EpicOmopError,
    ExportGone,
    KickOffUnknown,
    ProtocolError,
    RemoteUnavailable,
    TransientError,
    UnsafeRemote,
    UsageError,
)
from pipeline.extract import bulk
from pipeline.landing.origin import read_origin
from pipeline.landing.store import LandedExport
from pipeline.load.load import load as load_export
from pipeline.orchestration.run_metadata import landing_metadata
from pipeline.quality.report import load_report
from pipeline.quality.verify import verify_warehouse
from pipeline.sandbox.faults import EXAMPLE_FILE, Fault, load_faults
from pipeline.sandbox.sources import GeneratedSource
from pipeline.warehouse import export_jobs
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine
from tests.databases import Prepared
from tests.faults.support import (
    FaultyEpic,
    FixedLines,
    empty_warehouse,
    exported,
    is_file,
    landed_lines,
    site_of,
    states,
)

TYPES = ("Patient", "Encounter", "Condition", "Observation")
#: Three patients on one day: no export differs from the last but by its faults.
SOURCE = FixedLines(tuple(GeneratedSource(3, seed=13).lines(TYPES, date(2026, 3, 1), 0)))

Faults = tuple[Mapping[str, Any], ...]


@pytest.fixture(scope="module")
def installed(demo_warehouse: Prepared) -> Iterator[str]:
    with demo_warehouse.copy() as url:
        yield url


@pytest.fixture
def epic(tmp_path: Path, installed: str) -> FaultyEpic:
    epic = FaultyEpic(tmp_path / "home", installed, SOURCE, TYPES, resources_per_file=30)
    empty_warehouse(epic.runtime())
    return epic


@pytest.fixture(scope="module")
def every_line() -> Counter[bytes]:
    """What an undisturbed export holds, as the source gives it."""
    return Counter(line for _, line in SOURCE.content)


def fault(kind: str, **values: Any) -> dict[str, Any]:
    return {"fault": kind, **values}


# --- faults that the export outlives by itself


OUTLIVED: dict[str, Faults] = {
    "status 401 once": (fault("answer", at="status", status=401),),
    "tokens end before a poll": (fault("end-tokens", at="status", after=1),),
    "tokens end in the middle of the download": (fault("end-tokens", at="file", after=2),),
    "token endpoint down for a while": (fault("answer", at="token", status=503, times=3),),
    "discovery fails once": (fault("answer", at="discovery", status=500),),
    "server's clock 15 seconds behind": (fault("clock-skew", seconds=-15),),
    "server's clock a minute ahead": (fault("clock-skew", seconds=60),),
    "status without an answer": (fault("no-answer", at="status"),),
    "file without an answer": (fault("no-answer", at="file", after=1, times=2),),
    "body cut": (fault("cut-body", type="Observation", bytes=3000, times=2),),
    "body cut before its first byte": (fault("cut-body", bytes=0, times=2),),
    "gzip cut": (fault("cut-gzip", type="Observation", times=2),),
    "small pieces": (fault("small-pieces", type="Patient", bytes=3),),
    "no ranges": (fault("no-ranges"), fault("cut-body", type="Observation", bytes=9000, times=2)),
    "count too large, in the first manifest": (fault("wrong-count", type="Patient", off_by=1, times=1),),
    "count 0": (fault("wrong-count", type="Observation", count=0),),
    "count too large": (fault("wrong-count", type="Patient", off_by=3),),
    **{
        f"a file that is {how} twice": (fault("not-ndjson", type="Observation", how=how, times=2),)
        for how in ("html", "array", "utf-16", "gzip")
    },
    "no transactionTime": (fault("transaction-time", time=None),),
    "transactionTime in the future": (fault("transaction-time", time="2199-01-01T00:00:00Z"),),
    "count too small": (fault("wrong-count", type="Observation", off_by=-1),),
    "file 404 once": (fault("answer", at="file", number=2, status=404),),
    "file 410 once": (fault("answer", at="file", type="Observation", status=410),),
    "file 500 once": (fault("answer", at="file", status=500),),
    "file 408": (fault("answer", at="file", status=408),),
    "status 500 three times": (fault("answer", at="status", status=500, times=3),),
    "status 422 that calls itself transient": (fault("answer", at="status", status=422, code="transient"),),
    "delete answered with 404": (fault("answer", at="delete", status=404),),
    "delete fails": (fault("answer", at="delete", status=403, times="always"),),
    "202 for a long time": (fault("answer", at="status", status=202, times=200, retry_after="3600"),),
    "manifest in pages": (fault("pages", files=2),),
    "a file's address is new": (fault("other-address", type="Observation", url="/nowhere/1", times=1),),
    **{
        f"Retry-After {form!r}": (
            fault("answer", at="status", status=202, times=2, retry_after=form),
            fault("answer", at="file", status=429, times=2, retry_after=form),
            fault("answer", at="file", status=503, after=2, retry_after=form),
        )
        for form in ("7", "date", "past", "0", "-5", "soon, please", "epoch", "epoch-milliseconds", "99999999999", "")
    },
    **{f"manifest of {version}": (fault("manifest-version", version=version),) for version in ("stu2", "stu3", "stu4")},
    "separate export status": (fault("manifest-version", version="stu4", separate_status=True),),
}


#: Forms of one fault: a third of them each day.
_FORMS = ("Retry-After", "a file that is")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.deep] if name.startswith(_FORMS) else []) for name in OUTLIVED],
)
def test_the_export_ends_whole(epic: FaultyEpic, every_line: Counter[bytes], name: str) -> None:
    with epic.serving(*OUTLIVED[name]) as runtime:
        landed = exported(runtime)
        assert_whole(epic, runtime, landed, every_line)
        assert_played(epic)
    assert epic.clock.shift < timedelta(days=9), "200 polls of an hour are the longest wait"


def assert_played(epic: FaultyEpic) -> None:
    """The case is worth nothing if its fault never came to pass."""
    for one, played in epic.sandbox.state.faults.played():
        times = getattr(one, "times", None)
        if times is not None:
            assert played >= (1 if times == "always" else times), one


def assert_whole(epic: FaultyEpic, runtime: Runtime, landed: LandedExport, every_line: Counter[bytes]) -> None:
    assert landed_lines(landed) == every_line
    assert runtime.landing.open("site_a", landed.export_id, verify=True) == landed
    assert not [path for path in landed.folder.rglob("*") if ".part" in path.name or path.suffix == ".tmp"]
    assert epic.kick_offs == 1
    assert states(runtime) == ["landed"]
    with runtime.connect() as connection:
        row = connection.execute("SELECT count(DISTINCT file_number), sum(lines) FROM export_file").fetchone()
    assert row == (len(landed.files), every_line.total())


# --- faults that stop the run, which goes on when they are over


@dataclass(frozen=True)
class Stop:
    """The error of the first run, the export's state after it, and whether the next run needs a new export."""

    faults: Faults
    error: type[EpicOmopError]
    words: str
    state: str
    #: The group has to rest until its window has passed, and a new export begins.
    rests: bool = False


EVER: Mapping[str, Any] = {"times": "always"}
NOWHERE = "http://127.0.0.2:9/file"

STOPPED: dict[str, Stop] = {
    "token endpoint down": Stop(
        (fault("answer", at="token", status=503, **EVER),), RemoteUnavailable, "access token .* answered 503", "failed"
    ),
    "token endpoint down in the middle": Stop(
        (fault("end-tokens", at="status", after=1), fault("answer", at="token", status=503, after=1, **EVER)),
        RemoteUnavailable,
        "10 status calls in a row failed",
        "running",
    ),
    "401 for ever at the status": Stop(
        (fault("answer", at="status", status=401, **EVER),), AuthenticationRefused, "answered 401", "running"
    ),
    "401 for ever in the middle of the download": Stop(
        (fault("answer", at="file", status=401, after=2, **EVER),), AuthenticationRefused, "answered 401", "complete"
    ),
    "403 at a file": Stop(
        (fault("answer", at="file", status=403, after=2, **EVER),), EpicOmopError, "registration", "complete"
    ),
    "body cut for ever": Stop(
        (fault("cut-body", type="Observation", bytes=500, **EVER),), RemoteUnavailable, "connection failed", "complete"
    ),
    "gzip cut for ever": Stop(
        (fault("cut-gzip", type="Patient", **EVER),), RemoteUnavailable, "cannot be decompressed", "complete"
    ),
    "file 500 for ever": Stop(
        (fault("answer", at="file", number=2, status=500, **EVER),), RemoteUnavailable, "answered 500", "complete"
    ),
    "status 500 for ever": Stop(
        (fault("answer", at="status", status=500, after=1, **EVER),), RemoteUnavailable, "10 status calls", "running"
    ),
    "all files 404 for ever": Stop(
        (fault("answer", at="file", status=404, **EVER),), ExportGone, "can be had any more", "failed", True
    ),
    "no file holds a resource": Stop(
        (fault("not-ndjson", type="Patient", how="html", **EVER),), RemoteUnavailable, "none of them", "complete"
    ),
    "job 404": Stop((fault("answer", at="status", status=404),), ExportGone, "no longer knows", "gone", True),
    "kick-off refused for what it asks": Stop(
        (fault("answer", at="kick-off", status=400, code="invalid"),), EpicOmopError, r"400 \(invalid", "failed"
    ),
    "kick-off 503": Stop((fault("answer", at="kick-off", status=503),), RemoteUnavailable, "503", "failed"),
    "kick-off that nobody answers": Stop(
        (fault("no-answer", at="kick-off", processed=True),), KickOffUnknown, "connection failed", "failed", True
    ),
    "kick-off that a gateway gives up": Stop(
        (fault("answer", at="kick-off", status=504),), KickOffUnknown, "504", "failed", True
    ),
    "too recently": Stop((fault("too-recently", status=429),), CooldownActive, "too recently", "skipped", True),
    "link loop": Stop((fault("link-loop"),), ProtocolError, "circle", "failed", True),
    "type that is a path": Stop(
        (fault("type-name", type="Patient", name="../../x"),), UnsafeRemote, "not a resource type", "failed", True
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_the_run_stops_and_the_next_goes_on(epic: FaultyEpic, every_line: Counter[bytes], name: str) -> None:
    stop = STOPPED[name]
    with epic.serving(*stop.faults) as runtime:
        with pytest.raises(stop.error, match=stop.words) as caught:
            exported(runtime)
        assert_played(epic)
        assert states(runtime) == [stop.state]
        assert caught.value.advice or isinstance(caught.value, TransientError), "a person is told what to do"
        assert not any(line.startswith("DELETE") for line in epic.requests), "what is missing stays on the server"
        complete = [path.name for path in runtime.landing.root.rglob("*.ndjson.zst")]
    assert not list(epic.home.parent.rglob("x.*"))
    with epic.serving() as runtime:
        if stop.rests:
            asked = epic.kick_offs
            with pytest.raises(CooldownActive):
                exported(runtime)
            assert epic.kick_offs == asked, "the group rests: Epic is not asked"
            epic.clock.sleep(25 * 3600)
        before = len(epic.requests)
        landed = exported(runtime)
        assert landed_lines(landed) == every_line
        assert runtime.landing.open("site_a", landed.export_id, verify=True) == landed
        if stop.state in ("running", "complete"):
            assert epic.kick_offs == 1
            fetched = {line for line in epic.requests[before:] if is_file(line)}
            assert len(fetched) == len(landed.files) - len(complete), "what was complete is not fetched again"
        assert states(runtime)[0] == "landed"


@pytest.mark.parametrize(
    "other_host",
    [fault("other-address", type="Patient", url=NOWHERE), fault("redirect", number=2, location=NOWHERE)],
    ids=["named", "by redirect"],
)
def test_a_file_at_an_address_that_is_never_asked_is_left_out(
    epic: FaultyEpic, every_line: Counter[bytes], other_host: dict[str, Any]
) -> None:
    with epic.serving(other_host) as runtime:
        landed = exported(runtime)
        assert_played(epic)
        assert [gap.reason for gap in read_origin(landed.folder).gaps] == ["unusable"]
        found = landed_lines(landed)
        assert found < every_line, "the other files are there, whole"
        assert not any(line.startswith("DELETE") for line in epic.requests), "what is missing stays on the server"
        assert states(runtime) == ["landed"]


@pytest.mark.parametrize("seconds", [-600, 600])
def test_a_server_whose_clock_is_wrong(epic: FaultyEpic, every_line: Counter[bytes], seconds: int) -> None:
    """Either its Date header is gone by, or the refusal names the clocks and starts nothing."""
    stopped: AuthenticationRefused | None = None
    with epic.serving(fault("clock-skew", seconds=seconds)) as runtime:
        try:
            landed = exported(runtime)
        except AuthenticationRefused as error:
            stopped = error
        if stopped is None:
            assert_whole(epic, runtime, landed, every_line)
            return
        assert "clock differs from the server's by" in stopped.advice
        assert (epic.kick_offs, states(runtime)) == (0, ["failed"])
    with epic.serving() as runtime:
        assert landed_lines(exported(runtime)) == every_line
    assert epic.kick_offs == 1


# --- faults of what the files hold: the export is loaded, and compared with the undisturbed one


@dataclass
class Loaded:
    """What the warehouse holds after a load, told by source so that exports can be compared whatever their ids."""

    rows: Counter[tuple[Any, ...]]
    outcomes: Counter[str]
    dead_letters: Counter[str]


@dataclass(frozen=True)
class Load:
    """How the load of an export with these faults differs from the undisturbed one: outcomes of lines, dead letters."""

    faults: Faults
    outcomes: Mapping[str, int] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)


LOADED: dict[str, Load] = {
    "byte order mark": Load((fault("lines", how="bom"),)),
    "CR LF": Load((fault("lines", how="crlf"),)),
    "blank lines": Load((fault("lines", how="blank-lines"),)),
    "no last newline": Load((fault("lines", how="no-last-newline"),)),
    "all four": Load(tuple(fault("lines", how=how) for how in ("bom", "crlf", "blank-lines", "no-last-newline"))),
    "characters of several bytes in small pieces": Load(
        (fault("lines", how="not-ascii", type="Patient"), fault("small-pieces", bytes=3, type="Patient"))
    ),
    "malformed lines": Load(
        (fault("lines", how="malformed-line"),), {"rejected": len(TYPES)}, {"json_invalid": len(TYPES)}
    ),
    "a line of 20 MB": Load(
        (fault("lines", how="long-line", type="Observation"),), {"rejected": 1}, {"line_too_long": 1}
    ),
    "no lastUpdated": Load((fault("lines", how="no-last-updated"),)),
    "the same resource in two files": Load(
        (fault("duplicate", type="Patient", set={"birthDate": "1950-01-01"}),), {"superseded": 1}
    ),
    "messages of the site": Load((fault("outcomes", epic_code="59108"),)),
}


@pytest.fixture(scope="module")
def undisturbed(installed: str, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    epic = FaultyEpic(tmp_path_factory.mktemp("undisturbed") / "home", installed, SOURCE, TYPES, resources_per_file=30)
    empty_warehouse(epic.runtime())
    with epic.serving() as runtime:
        return loaded(runtime, exported(runtime))


def loaded(runtime: Runtime, landed: LandedExport) -> Loaded:
    """Load a landed export, check what must always hold, and see what is there."""
    load_export(runtime, site_of(runtime), landed)
    with runtime.connect() as connection:
        assert [check for check in verify_warehouse(connection, "cdm") if not check.ok] == []
        rows = connection.execute("SELECT cdm_table, resource_type, resource_id FROM row_source").fetchall()
        letters = connection.execute("SELECT code FROM dead_letter WHERE state = 'open'").fetchall()
        counts = connection.execute(
            "SELECT sum(loaded), sum(unchanged), sum(superseded), sum(excluded), sum(rejected) FROM file_account"
        ).fetchone()
    assert counts is not None
    names = ("loaded", "unchanged", "superseded", "excluded", "rejected")
    outcomes = Counter(dict(zip(names, (int(count or 0) for count in counts), strict=True)))
    return Loaded(Counter(rows), outcomes, Counter(code for (code,) in letters))  # type: ignore[arg-type]


@pytest.mark.deep
@pytest.mark.parametrize("name", LOADED)
def test_every_line_is_loaded_once(epic: FaultyEpic, undisturbed: Loaded, name: str) -> None:
    case = LOADED[name]
    with epic.serving(*case.faults) as runtime:
        landed = exported(runtime)
        assert_played(epic)
        found = loaded(runtime, landed)
    assert found.rows == undisturbed.rows
    assert found.outcomes == undisturbed.outcomes + Counter(case.outcomes)
    assert found.dead_letters == undisturbed.dead_letters + Counter(case.dead_letters)
    assert states(runtime) == ["published"]


def test_the_last_of_two_is_the_resource(epic: FaultyEpic, undisturbed: Loaded) -> None:
    """The rule: the last line of a resource in the order of files wins."""
    with epic.serving(fault("duplicate", type="Patient", set={"birthDate": "1950-01-01"})) as runtime:
        loaded(runtime, exported(runtime))
        with runtime.connect() as connection:
            born = connection.execute("SELECT count(*) FROM cdm.person WHERE year_of_birth = 1950").fetchone()
    assert born == (1,)


def test_deleted_resources_lose_their_rows(epic: FaultyEpic, undisturbed: Loaded) -> None:
    with epic.serving() as runtime:
        first = loaded(runtime, exported(runtime))
    assert first.rows == undisturbed.rows
    epic.clock.sleep(25 * 3600)
    with epic.serving(fault("deleted", type="Condition", resources=2), fault("deleted", type="Observation")) as runtime:
        landed = exported(runtime)
        second = loaded(runtime, landed)
        with runtime.connect() as connection:
            gone = connection.execute(
                "SELECT kind.resource_type, state.resource_id FROM resource_state AS state"
                " JOIN site_resource_type AS kind USING (site_resource_type_id) WHERE state.reason = 'deleted'"
            ).fetchall()
            excluded = connection.execute(
                "SELECT resource_type, count FROM exclusion WHERE reason = 'deleted'"
            ).fetchall()
        missing = first.rows - second.rows
        assert Counter(kind for kind, _ in gone) == {"Condition": 2, "Observation": 1}
        assert {(kind, one) for _, kind, one in missing} == set(gone)
        assert not second.rows - first.rows
        assert sorted(excluded) == [("Condition", 2), ("Observation", 1)]
        again = load_export(runtime, site_of(runtime), landed).reports
        assert sum(report.changed_rows for report in again) == 0, "an export that is loaded again deletes nothing more"
    epic.clock.sleep(25 * 3600)
    with epic.serving() as runtime:
        third = loaded(runtime, exported(runtime))
    assert third.rows == first.rows, "a resource that is exported again is there again"


def test_a_deleted_patient_takes_all_rows_along(epic: FaultyEpic, undisturbed: Loaded) -> None:
    with epic.serving() as runtime:
        loaded(runtime, exported(runtime))
    epic.clock.sleep(25 * 3600)
    with epic.serving(fault("deleted", type="Patient")) as runtime:
        second = loaded(runtime, exported(runtime))
        with runtime.connect() as connection:
            counts = connection.execute(
                "SELECT (SELECT count(*) FROM cdm.person), (SELECT count(DISTINCT person_id) FROM cdm.observation_period),"
                " (SELECT count(*) FROM resource_state WHERE reason = 'person_removed')"
            ).fetchone()
    assert counts is not None
    assert counts[:2] == (2, 2)
    assert counts[2] > 10
    assert second.rows < undisturbed.rows
    epic.clock.sleep(25 * 3600)
    with epic.serving() as runtime:
        third = loaded(runtime, exported(runtime))
    assert third.rows == undisturbed.rows, "when the patient is exported again, everything is there again"


# --- what people are told


@pytest.fixture
def told(epic: FaultyEpic, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What `epic-omop status` prints."""
    for name, value in {**epic.environment, "COLUMNS": "300", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)

    def status() -> str:
        result = CliRunner().invoke(program, ["status"])
        assert result.exit_code == 0, result.output
        return result.output

    return status


def in_dagster(runtime: Runtime) -> dict[str, Any]:
    with runtime.connect() as connection:
        metadata = landing_metadata(connection, export_jobs.list_jobs(connection))
    return {name: entry.value for name, entry in metadata.items()}


def test_fewer_types_than_asked(epic: FaultyEpic, told: Callable[[], str]) -> None:
    sentence = "Asked for, but no file came: Encounter, Observation."
    with epic.serving(fault("missing-types", types=["Observation", "Encounter"])) as runtime:
        result = bulk.export_groups(runtime, site_of(runtime), ("g1",))
        (landed,) = result.landed
        assert result.notes[landed.export_id] == [sentence]
        loaded(runtime, landed)
    assert sentence in told()
    assert in_dagster(runtime)["asked for, no file came"] == "Encounter, Observation"
    with runtime.connect() as connection:
        assert load_report(connection, "cdm", "vocab", [landed.export_id]).notes.sentences() == [sentence]


def test_empty_output(epic: FaultyEpic, told: Callable[[], str]) -> None:
    with epic.serving(fault("empty-output")) as runtime:
        landed = exported(runtime)
        assert (landed.files, landed.lines) == ((), 0)
        assert loaded(runtime, landed).outcomes.total() == 0
    assert states(runtime) == ["published"]
    assert f"no file came: {', '.join(TYPES)}." in told()


def test_a_manifest_with_error_entries(epic: FaultyEpic, told: Callable[[], str]) -> None:
    issues = ["information informational", "error processing", "error processing", "error forbidden", "fatal exception"]
    versions = (fault("manifest-version", version="stu4"), fault("manifest-version", version="stu2"))
    for version in versions:
        with epic.serving(version, fault("outcomes", issues=issues)) as runtime:
            landed = exported(runtime)
            assert [file.lines for file in landed.outcomes] == [5]
            loaded(runtime, landed)
        sentence = "Messages of the site: 2 fatal, 2 resource, 1 informational (error forbidden, fatal exception, error"
        assert sentence in " ".join(told().split())
        shown = in_dagster(runtime)
        assert (shown["messages fatal"], shown["messages resource"], shown["messages informational"]) == (2, 2, 1)
        empty_warehouse(runtime)
        epic.clock.sleep(25 * 3600)


def test_a_cool_down_is_shown_until_it_ends(epic: FaultyEpic, told: Callable[[], str]) -> None:
    with epic.serving(fault("too-recently", status=403)) as runtime:
        with pytest.raises(CooldownActive) as caught:
            exported(runtime)
        assert caught.value.next_try is not None
        assert timedelta(hours=23) < caught.value.next_try - epic.clock.now() <= timedelta(hours=24)
        assert f"group g1 is in its cool-down until {caught.value.next_try:%Y-%m-%d %H:%M} UTC" in told()
        with pytest.raises(
            CooldownActive
        ) as later:  # kept in the warehouse: another process knows it, Epic is not asked
            exported(epic.runtime())
        assert later.value.next_try == caught.value.next_try
        assert (epic.kick_offs, states(runtime)) == (1, ["skipped"])


# --- the faults file


def test_the_example_holds_every_kind_and_is_printed() -> None:
    faults = load_faults(EXAMPLE_FILE)
    kinds = {option.model_fields["fault"].default for option in get_args(get_args(Fault)[0])}
    assert {one.fault for one in faults} == kinds
    printed = CliRunner().invoke(program, ["sandbox", "faults"])
    assert printed.output == EXAMPLE_FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("faults: [{fault: answer, at: status, status: 99}]", r"fault 1 \(answer\), status: .*200"),
        ("faults: [{fault: no-ranges}, {fault: thunder}]", "fault 2: .*thunder"),
        ("faults: [{fault: cut-body, byte: 5}]", r"fault 1 \(cut-body\), byte: "),
        ("faults: {", "not valid YAML at line 1"),
        ("[]", "the file"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_faults_file_is_told(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "faults.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=words) as caught:
        load_faults(file)
    assert "sandbox faults" in caught.value.advice


def test_the_serve_command_plays_faults(tmp_path: Path) -> None:
    (tmp_path / "faults.yaml").write_text("faults: [{fault: answer, at: discovery, status: 503, retry_after: '9'}]")
    terminal = CommandLine(tmp_path, "")
    options = ("--patients", "2", "--port", "0", "--site", "demo", "--faults", tmp_path / "faults.yaml")
    server = terminal.start("sandbox", "serve", *options)
    try:
        assert server.out.line("Faults").split(": ")[1] == "answer.\n"
        url = yaml.safe_load((tmp_path / "sites.yaml").read_text())["sites"]["demo"]["fhir_url"]
        discovery = f"{url}/.well-known/smart-configuration"
        first, second = (httpx.get(discovery, trust_env=False) for _ in range(2))
        assert (first.status_code, first.headers["retry-after"]) == (503, "9")
        assert second.status_code == 200
    finally:
        server.terminate()
        server.finish()
