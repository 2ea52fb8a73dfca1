"""After real runs, everything that was written for people and machines is searched for every value of the input.

Two nights through Dagster's own jobs, logs at DEBUG: one that works, one whose server quotes patients in its errors.
The places that hold patient data by design are the landing and staging stores, the CDM, and the tables of `etl` that
tie rows to resources; everything else must not.
"""

from __future__ import annotations

import logging
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import Response

from pipeline.core.errors import EpicOmopError
from pipeline.core.logs import configure_logging
from pipeline.core.settings import LogSettings, Settings, SiteSettings
from pipeline.extract.bulk import export_site
from pipeline.orchestration.instance import prepare_instance
from pipeline.orchestration.nightly import RunOutcome, run_nightly
from pipeline.sandbox.responses import FhirRefusal, outcome_response
from pipeline.sandbox.sources import GeneratedSource
from pipeline.warehouse.runtime import Runtime
from tests.databases import Prepared
from tests.hostile_epic import KEY_PEM, HostileEpic, ShiftedClock, is_file, running, site_entry

SOURCE = GeneratedSource(8, seed=11)
TYPES = tuple(SOURCE.resource_types())

#: Tables of `etl` that speak of exports, requests and failures, not of resources.
TABLES = (
    "access_log",
    "cool_down",
    "exclusion_count",
    "export_file",
    "export_job",
    "publication",
    "request_count",
    "site_resource_type",
    "unmapped_code",
    "vocabulary_release",
)

#: Elements whose values say nothing of a person: codes, their systems and the words of their terminologies.
_CODED = frozenset({"system", "code", "coding", "unit", "use", "status", "gender", "resourceType", "url", "language"})
_CODED |= {
    "intent",
    "type",
    "mode",
    "comparator",
    "profile",
    "version",
    "class",
    "priority",
    "lastUpdated",
    "versionId",
}


@dataclass
class World:
    epic: HostileEpic
    runtime: Runtime
    log: Path
    dagster: Path
    terminal: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def night(self) -> RunOutcome:
        with dg.DagsterInstance.get() as instance:
            return run_nightly(self.runtime, "site_a", instance, self.terminal.append)

    def written(self) -> dict[str, str]:
        """Everything that was written: place → text."""
        files = {f"dagster/{path.name}": path for path in self.dagster.rglob("*") if path.is_file()}
        found = {name: path.read_bytes().decode("utf-8", "replace") for name, path in files.items()}
        found["log"] = self.log.read_text()
        found["terminal"] = "\n".join(self.terminal)
        home = self.runtime.settings.home
        found["names of files"] = "\n".join(str(path.relative_to(home)) for path in home.rglob("*"))
        with self.runtime.connect() as connection:
            for table in TABLES:
                # A coding's display is the words of its terminology, of which some ("tablet") are in texts as well.
                row = "to_jsonb(row) - 'display'" if table == "unmapped_code" else "row"
                rows = connection.execute(f"SELECT ({row})::text FROM {table} AS row").fetchall()
                found[f"etl.{table}"] = "\n".join(row[0] for row in rows)
        return found


@pytest.fixture
def world(tmp_path: Path, demo_warehouse: Prepared, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    home = tmp_path / "home"
    clock = ShiftedClock(timedelta(days=-3))  # Dagster has partitions up to the real today
    options = {"resources_per_file": 3000, "retry_after_seconds": 1}
    with (
        demo_warehouse.copy(home) as url,
        running(HostileEpic(clock, groups={"g1": SOURCE}, options=options)) as epic,
    ):
        site = SiteSettings(name="site_a", **site_entry(epic, tmp_path, resource_types=TYPES, poll_floor_seconds=1))
        settings = Settings(home=home, database_url=url, sites={"site_a": site}, workers=1)
        monkeypatch.setenv("DAGSTER_HOME", str(prepare_instance(settings)))
        with logged(tmp_path / "log", monkeypatch):
            yield World(epic, Runtime(settings, clock), tmp_path / "log", home / "dagster")


class logged:  # noqa: N801 - reads as a function
    """Everything at DEBUG goes to a file, in the form that machines read; put back at the end."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stream = file.open("w")
        for name in ("pipeline", "omop_schema", ""):
            monkeypatch.setattr(logging.getLogger(name), "level", logging.getLogger(name).level)

    def __enter__(self) -> None:
        self._handler = configure_logging(LogSettings(level="DEBUG", format="json"), self._stream)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._handler)
        self._stream.close()


def values(element: object, name: str = "") -> Iterator[str]:
    """The texts below an element that may say something of a person."""
    if isinstance(element, dict):
        for key, child in element.items():
            if key not in _CODED:
                yield from values(child, key)
    elif isinstance(element, list):
        for child in element:
            yield from values(child, name)
    elif isinstance(element, str) and name != "reference":
        yield element
    elif isinstance(element, str):
        yield element.rpartition("/")[2]


def displays(element: object) -> Iterator[str]:
    """The words of the terminologies: how codings are displayed."""
    if isinstance(element, dict):
        if "code" in element and isinstance(element.get("display"), str):
            yield element["display"]
        for child in element.values():
            yield from displays(child)
    elif isinstance(element, list):
        for child in element:
            yield from displays(child)


def patient_data() -> set[str]:
    """Ids, names, identifiers, addresses, telephone numbers, dates and free texts of all resources."""
    found: set[str] = set()
    of_codings: set[str] = set()
    for _, line in SOURCE.lines(TYPES, date(2026, 1, 1), 0):
        try:
            resource = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(resource, dict):
            found |= set(values(resource))
            of_codings |= set(displays(resource))
    found -= of_codings
    # Three letters are found in any text; a day is that of many a log line.
    return {text for text in found if len(text) > 3 and not text.startswith(("http", "urn:oid:"))}


def secrets(world: World) -> set[str]:
    """The key's lines, the assertions and their signatures, the tokens."""
    found = {line for line in KEY_PEM.decode().splitlines() if line and not line.startswith("---")}
    for form in world.epic.forms:
        assertion = urllib.parse.parse_qs(form.decode())["client_assertion"][0]
        found |= {assertion, assertion.rpartition(".")[2]}
    found |= {token.removeprefix("Bearer ") for _, _, token in world.epic.requests if token}
    return found


def assert_nothing_leaked(world: World, data: set[str]) -> None:
    searched = world.written()
    assert sum(map(len, searched.values())) > 100_000
    leaks = {
        (place, value)
        for place, text in searched.items()
        for value in data
        if value in text and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)
    }
    assert leaks == set()


def test_nothing_of_a_patient_and_no_secret_is_written_anywhere(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    data = patient_data()
    assert len(data) > 500
    outcome = world.night()
    assert (outcome.success, outcome.problems) == (True, [])
    hidden = secrets(world)
    assert len(hidden) > 5
    world.terminal += capfd.readouterr()
    assert_nothing_leaked(world, data | hidden)
    assert '"event":"file"' in world.log.read_text()

    _make_hostile(world)
    world.epic.clock.sleep(25 * 3600)
    _nights_that_fail(world)
    world.terminal += capfd.readouterr()
    assert_nothing_leaked(world, data | secrets(world))


def _quotation() -> str:
    """What a careless server writes into an error: the patient."""
    for kind, line in SOURCE.lines(("Patient",), date(2026, 1, 1), 0):
        patient = orjson.loads(line) if kind == "Patient" else {}
        if patient.get("name") and patient.get("identifier"):
            name = " ".join((*patient["name"][0]["given"], patient["name"][0]["family"]))
            number = patient["identifier"][0]["value"]
            return f"{name}, born {patient['birthDate']}, number {number}, id {patient['id']}"
    raise AssertionError("no patient with a name")


def _make_hostile(world: World) -> None:
    """Each kind of request fails in a way of its own, once or for good, and quotes a patient."""
    quoted = _quotation()
    refusals: dict[str, list[Response]] = {
        "token": [Response(orjson.dumps({"error": "invalid_client", "error_description": quoted}), 400)],
        "kick-off": [outcome_response(FhirRefusal(400, "invalid", f"Not exported: {quoted}"))],
        "status": [
            Response(status_code=202, headers={"X-Progress": f"exporting {quoted}", "Retry-After": "1"}),
            outcome_response(FhirRefusal(503, "transient", f"Busy with {quoted}")),
        ],
        "file": [
            outcome_response(FhirRefusal(500, "exception", f"Failed at {quoted}")),
            outcome_response(FhirRefusal(403, "forbidden", f"Forbidden: {quoted}")),
        ],
    }

    def answer(_: int, request: Request) -> Response | None:
        path = request.url.path
        kinds = {"token": path.endswith("/token"), "kick-off": path.endswith("$export"), "file": is_file(path)}
        kinds["status"] = request.method == "GET" and "/BulkRequest/" in path and not is_file(path)
        hit = next((kind for kind, found in kinds.items() if found), None)
        return refusals[hit].pop(0) if hit and refusals[hit] else None

    world.epic.answer = answer


def _nights_that_fail(world: World) -> None:
    failures = [world.night() for _ in range(3)]
    assert not failures[0].success
    assert "invalid_client" in "".join(failures[0].problems)
    assert "400 (invalid: Not exported: …" in "".join(failures[1].problems), failures[1].problems
    assert failures[2].success, "a file that is refused once is fetched after the manifest was read again"
    for failure in failures:
        world.terminal += failure.problems
    try:
        export_site(world.runtime, world.runtime.settings.site("site_a"))
    except EpicOmopError as error:
        world.terminal.append(str(error))
