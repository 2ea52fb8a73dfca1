"""Crawls of the simulated Epic into a real PostgreSQL: the same rows as a bulk export, whatever interrupts them."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import orjson
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.commands.cli import app
from pipeline.core.errors import LandingError, RemoteRefused, RemoteUnavailable, SiteBusy, UnsafeRemote, UsageError
from pipeline.extract.http.transport import RetryPolicy
from pipeline.extract.rest.crawl import crawl, left_crawls, unfinished_crawls
from pipeline.landing.reading import open_landed, stored_file
from pipeline.load.load import LoadOptions, load
from pipeline.warehouse import export_jobs
from tests.command_line import CommandLine, killed
from tests.databases import Prepared
from tests.integration.rest_world import PATIENTS, SHARED, World, generated, world

HYDRATED = LoadOptions(hydrate=True)

#: Every place between the list and the landed export: a crawl is killed at all of them, one after the other.
KILLS = (
    ("pipeline.warehouse.crawls:add_patients", "before", 1),
    ("pipeline.warehouse.crawls:add_patients", "after", 1),
    ("pipeline.landing.crawl_spool:SpoolEntry.commit", "before", 20),
    ("pipeline.landing.crawl_spool:SpoolEntry.commit", "after", 25),
    ("pipeline.warehouse.crawls:save_search", "after", 30),
    ("pipeline.landing.crawl_spool:CrawlSpool.assemble", "before", 1),
    ("pipeline.landing.store:LandingDraft.keep", "after", 3),
    ("pipeline.landing.store:LandingDraft.finish", "before", 1),
    ("pipeline.landing.store:LandingDraft.finish", "after", 1),
    ("pipeline.warehouse.export_jobs:save_landed", "after", 1),
    ("pipeline.landing.crawl_spool:CrawlSpool.discard", "before", 1),
)


@pytest.fixture
def place(demo_warehouse: Prepared, tmp_path: Path) -> Iterator[World]:
    with world(demo_warehouse, tmp_path / "home", entries_per_page=7) as made:
        yield made


def searches(place: World, resource_type: str) -> list[str]:
    """The queries of searches for a type, further pages not counted."""
    asked = zip(place.watched.paths, place.watched.queries, strict=True)
    return [query for path, query in asked if path == resource_type and "sessionID" not in query]


def test_a_crawl_gives_the_rows_of_a_bulk_export(demo_warehouse: Prepared, tmp_path: Path) -> None:
    """Types without a patient are hydrated. Observation is asked for by category, pages are followed to the end."""
    # Nothing refers to a PractitionerRole, which says a provider's specialty: it cannot be fetched by reference.
    with world(demo_warehouse, tmp_path / "bulk", left_out_types=frozenset({"PractitionerRole"})) as bulk:
        load(bulk.runtime, bulk.site, bulk.export(), HYDRATED)
        expected = bulk.content()
    with world(demo_warehouse, tmp_path / "crawl", site={"hydrate": True}, entries_per_page=7) as place:
        steps: list[tuple[int, int]] = []
        result = crawl(place.runtime, place.site, place.patients(), progress=lambda *step: steps.append(step))
        load(place.runtime, place.site, result.export, HYDRATED)
        assert place.content() == expected
        assert (result.patients, result.missing_patients, result.refused) == (PATIENTS, 0, Counter())
        assert steps[-1] == (PATIENTS, PATIENTS)
        assert any("sessionID" in query for query in place.watched.queries)
        assert all("category=" in query for query in searches(place, "Observation"))
        assert len(searches(place, "Observation")) == PATIENTS * len(place.site.searches_of("Observation"))
        assert not {path for path in place.watched.paths if path in SHARED}
        (job,) = place.jobs("crawl")
        assert (job.state, job.progress) == ("published", f"{PATIENTS} of {PATIENTS} patients")
        assert not (result.export.folder / "patients").exists()
        assert place.runtime.landing.open("site_a", job.export_id, verify=True) == result.export


def test_lines_are_the_bytes_of_the_server(place: World) -> None:
    landed = {line for (_, line) in place.lines(crawl(place.runtime, place.site, place.patients()).export)}
    source = place.sandbox.state.config.groups["all"]
    day = place.sandbox.state.desk.started.date()
    exported = {line for _, line in source.lines(source.resource_types(), day, 0)}
    assert landed <= exported
    assert len(landed) > 500


def test_killed_at_every_step_and_called_again(place: World, tmp_path: Path) -> None:
    """The same landed files as without a kill, and no type of a patient twice."""
    terminal = _terminal(place, tmp_path)
    arguments = ("crawl", "site_a", "--patients", tmp_path / "patients.csv", "--no-load")
    for where, when, number in KILLS:
        child = terminal.start(*arguments, program=killed(where, when, number))
        assert child.finish().code == -signal.SIGKILL, f"{when} call {number} of {where}"
    result = crawl(place.runtime, place.site, place.patients())
    assert place.rows("SELECT count(*) FROM export_job WHERE kind = 'crawl'") == [(1,)]
    assert set(place.lines(result.export).values()) == {1}
    left = [path for path in result.export.folder.rglob("*") if path.suffix in (".part", ".tmp") or path.is_dir()]
    assert {path.name for path in left} == {"files", "outcomes", "deleted"}
    undisturbed = crawl(place.runtime, place.site, place.patients(), full=True)
    assert [file.sha256 for file in result.export.files] == [file.sha256 for file in undisturbed.export.files]
    requests = len(searches(place, "Encounter"))
    assert requests <= 2 * PATIENTS + 3 * place.site.rest_workers, "what was recorded is not asked for again"


def _terminal(place: World, folder: Path) -> CommandLine:
    """The world's site in sites.yaml, and its patients in a file."""
    entry = place.site.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    (place.runtime.settings.home / "sites.yaml").write_text(yaml.safe_dump({"sites": {"site_a": entry}}))
    (folder / "patients.csv").write_text("mrn,Patient_ID\n" + "".join(f"1,{one}\n" for one in place.patients()))
    return CommandLine(place.runtime.settings.home, place.runtime.settings.database_url or "")


def test_a_patient_who_is_not_there_is_counted_and_nothing_else_is_asked(place: World) -> None:
    known = place.patients()[:2]
    result = crawl(place.runtime, place.site, [known[0], "eNobody", known[1]])
    assert (result.patients, result.missing_patients) == (3, 1)
    assert len(searches(place, "Encounter")) == 2
    assert not [query for query in searches(place, "Encounter") if "eNobody" in query]
    assert result.resources["Patient"] == 2


def test_what_the_site_refuses_is_told_with_its_code(place: World) -> None:
    """A category that the site's API does not have (rule 6), and a type that needs one and gets none (rule 14)."""
    changed = place.with_site(
        crawl_searches={"Observation": ("category=vital-signs", "category=procedure"), "DocumentReference": ()},
        resource_types=("Patient", "Observation", "DocumentReference"),
    )
    result = crawl(changed.runtime, changed.site, changed.patients())
    assert result.refused == {("Observation", "59100"): PATIENTS}
    assert result.resources["Observation"] > 0
    assert result.resources["DocumentReference"] > 0
    states = changed.rows("SELECT DISTINCT state FROM crawl_search WHERE resource_type = 'Observation'")
    assert states == [("incomplete",)]
    bare = place.with_site(crawl_searches={"Observation": ()}, resource_types=("Patient", "Observation"))
    result = crawl(bare.runtime, bare.site, bare.patients())
    assert result.refused == {("Observation", "59108"): PATIENTS}
    assert bare.rows(
        "SELECT DISTINCT state FROM crawl_search WHERE export_id = %s AND resource_type = 'Observation'",
        result.export.export_id,
    ) == [("refused",)]


def test_types_that_are_not_granted_are_named_and_not_asked_for(demo_warehouse: Prepared, tmp_path: Path) -> None:
    scopes = ("system/Patient.rs", "system/Encounter.rs")
    site = {"resource_types": ("Patient", "Encounter", "Goal")}
    with world(demo_warehouse, tmp_path / "home", site=site, scopes=scopes) as place:
        result = crawl(place.runtime, place.site, place.patients())
        assert result.refused == {("Goal", "not granted"): PATIENTS}
        assert result.resources["Encounter"] > PATIENTS
        assert not searches(place, "Goal")
    with world(demo_warehouse, tmp_path / "other", site=site, scopes=("system/Encounter.rs",)) as place:
        with pytest.raises(RemoteRefused, match="no access to Patient"):
            crawl(place.runtime, place.site, place.patients())
        assert not searches(place, "Encounter")
        assert "no access to Patient" in (place.jobs("crawl")[0].error or "")


def test_outcomes_in_a_page_are_classified(place: World) -> None:
    """4101 is no more than an empty answer; break-the-glass makes the type incomplete; outcomes are landed apart."""
    patient = place.patients()[0]
    found = {"resourceType": "Goal", "id": "g1", "subject": {"reference": f"Patient/{patient}"}}
    glass = {
        "severity": "error",
        "code": "suppressed",
        "details": {"coding": [{"code": "4130"}], "text": "Break the glass"},
    }
    page = {
        "resourceType": "Bundle",
        "type": "searchset",
        "entry": [
            {"resource": found, "search": {"mode": "match"}},
            {"resource": {**found, "id": "g2"}, "search": {"mode": "include"}},
            {"resource": {"resourceType": "OperationOutcome", "issue": [glass]}, "search": {"mode": "outcome"}},
            {"fullUrl": "urn:uuid:nothing"},
        ],
    }
    place.watched.answers["Goal"] = (200, orjson.dumps(page), -1)
    result = crawl(place.runtime, place.site, [patient])
    assert result.resources["Goal"] == 2
    assert result.refused == {("Goal", "4130"): 1}
    (outcome,) = result.export.outcomes
    assert orjson.loads(open_landed(outcome.path).read())["issue"] == [glass]
    assert place.rows("SELECT DISTINCT codes FROM crawl_search WHERE resource_type <> 'Goal'") == [({},)]


def test_a_server_that_is_down_is_asked_again_by_the_next_call(place: World) -> None:
    place.watched.answers["Condition"] = (500, b"", -1)
    with pytest.raises(RemoteUnavailable, match="is not whole") as caught:
        crawl(place.runtime, place.site, place.patients())
    assert "Run the same command again" in caught.value.advice
    assert list(unfinished_crawls(place.runtime, place.site).values()) == [place.patients()]
    before = Counter(place.watched.paths)
    place.watched.answers.clear()
    result = crawl(place.runtime, place.site, place.patients())
    assert result.refused == Counter()
    assert result.resources["Condition"] > 20
    patients_asked = Counter(place.watched.paths)["Patient"]
    assert patients_asked == PATIENTS, "what was found is not asked for again"
    assert before["Patient"] > 0
    assert unfinished_crawls(place.runtime, place.site) == {}


def test_what_fails_for_ever_can_be_accepted_and_is_named(place: World) -> None:
    """All other types of all patients are there; the type is not asked for again and again."""
    place.watched.answers["Goal"] = (500, b"", -1)
    patients = place.patients()
    with pytest.raises(RemoteUnavailable, match="12 searches failed, 0 patients were not reached"):
        crawl(place.runtime, place.site, patients, full=True)
    assert place.watched.paths.count("Goal") < 9 * RetryPolicy().attempts
    ((label, listed),) = unfinished_crawls(place.runtime, place.site).items()
    changed = place.with_site(crawl_searches={"Condition": ("category=problem-list-item",)})
    result = crawl(changed.runtime, changed.site, listed, label=label, accept_failed=True)
    assert result.refused == {("Goal", "no answer"): PATIENTS}
    assert result.resources["Patient"] == PATIENTS
    assert len(place.jobs("crawl")) == 1
    load(place.runtime, place.site, result.export, HYDRATED)
    place.content()


def test_a_token_that_ends_in_the_middle_is_renewed(demo_warehouse: Prepared, tmp_path: Path) -> None:
    with world(demo_warehouse, tmp_path / "home", site={"requests_per_second": 2.0}, token_seconds=30) as place:
        result = crawl(place.runtime, place.site, place.patients())
        assert result.resources["Patient"] == PATIENTS
        assert result.refused == Counter()
        assert len([path for path in place.watched.paths if path == "/oauth2/token"]) > 3


def test_a_link_to_another_host_ends_the_crawl(place: World) -> None:
    page = {"resourceType": "Bundle", "link": [{"relation": "next", "url": "https://elsewhere.example/next?patient=1"}]}
    place.watched.answers["Encounter"] = (200, orjson.dumps(page), -1)
    with pytest.raises(UnsafeRemote, match=r"elsewhere\.example") as caught:
        crawl(place.runtime, place.site, place.patients())
    assert not [patient for patient in place.patients() if patient in str(caught.value)]


def test_links_in_a_circle_end(place: World) -> None:
    page = {"resourceType": "Bundle", "link": [{"relation": "next", "url": f"{place.site.fhir_url}/Goal?page=2"}]}
    place.watched.answers["Goal"] = (200, orjson.dumps(page), -1)
    with pytest.raises(RemoteUnavailable, match="1 searches failed"):
        crawl(place.runtime, place.site, place.patients()[:1])
    assert place.watched.paths.count("Goal") == 2


def test_only_what_changed_is_asked_for_where_the_site_can_tell(demo_warehouse: Prepared, tmp_path: Path) -> None:
    """`_lastUpdated`: after a day, two crawls end with the rows of one that asks for everything."""
    site = {"search_last_updated": True}
    with world(demo_warehouse, tmp_path / "home", site=site, knows_last_updated=True) as place:
        place.clock.sleep(3600)  # longer ago than what a search looks back beyond the last one
        first = crawl(place.runtime, place.site, place.patients())
        load(place.runtime, place.site, first.export, HYDRATED)
        assert not [query for query in place.watched.queries if "_lastUpdated" in query]
        place.clock.sleep(timedelta(days=30).total_seconds())
        second = crawl(place.runtime, place.site, place.patients())
        load(place.runtime, place.site, second.export, HYDRATED)
        assert all("_lastUpdated=ge2" in query for query in searches(place, "Encounter")[PATIENTS:])
        assert 0 < second.resources["Observation"] < first.resources["Observation"]
        incremental = place.content()
        before = place.rows("SELECT count(*) FROM resource_state")
        full = crawl(place.runtime, place.site, place.patients(), full=True)
        load(place.runtime, place.site, full.export, HYDRATED)
        assert full.resources["Observation"] > first.resources["Observation"]
        assert place.rows("SELECT count(*) FROM resource_state") == before
        assert place.content() == incremental
        place.clock.sleep(86_400)
        nothing = crawl(place.runtime, place.site, place.patients()[:1])
        load(place.runtime, place.site, nothing.export, HYDRATED)
        assert place.rows("SELECT state FROM export_job WHERE export_id = %s", nothing.export.export_id) == [
            ("published",)
        ]


def test_other_lists_are_other_crawls_and_one_is_done_by_one_process(place: World) -> None:
    patients = place.patients()
    first = crawl(place.runtime, place.site, patients[:2])
    assert crawl(place.runtime, place.site, patients[:2]).export == first.export, "landed, not loaded: the same"
    other = crawl(place.runtime, place.site, patients[2:3])
    assert other.export.export_id != first.export.export_id
    label = place.jobs("crawl")[0].group_id or ""
    with (
        place.runtime.connect() as connection,
        export_jobs.site_lock(connection, "site_a", export_jobs.SiteWork.CRAWL, label),
        pytest.raises(SiteBusy),
    ):
        crawl(place.runtime, place.site, patients[2:3])
    load(place.runtime, place.site, first.export, HYDRATED)
    assert crawl(place.runtime, place.site, patients[:2]).export.export_id > other.export.export_id, "loaded: anew"


def test_a_crawl_that_was_landed_and_not_loaded_is_found(place: World) -> None:
    """Its process ended between the two: `--resume` finds it, and so does a crawl job whose list is another by now."""
    patients = place.patients()
    left = crawl(place.runtime, place.site, patients[:1])
    requests = len(place.watched.paths)
    (found,) = unfinished_crawls(place.runtime, place.site, landed=True).items()
    assert found[1] == patients[:1]
    assert left_crawls(place.runtime, place.site, patients[1:2]) == [left.export]
    assert left_crawls(place.runtime, place.site, patients[:1]) == [], (
        "its own list's crawl is adopted by `crawl` itself"
    )
    assert crawl(place.runtime, place.site, found[1], label=found[0]).export == left.export
    assert len(place.watched.paths) == requests, "nothing is asked for again"
    load(place.runtime, place.site, left.export, HYDRATED)
    assert unfinished_crawls(place.runtime, place.site, landed=True) == {}
    broken = crawl(place.runtime, place.site, patients[1:2])
    stored_file(broken.export.files[0].path).unlink()
    with pytest.raises(LandingError):
        left_crawls(place.runtime, place.site, patients[:1])
    assert unfinished_crawls(place.runtime, place.site, landed=True) == {}, (
        "its patients are asked for again by the next crawl"
    )


class Terminal:
    """`epic-omop` in this process; the clock is the real one, and no request is repeated."""

    def __init__(self, place: World, folder: Path, patched: pytest.MonkeyPatch) -> None:
        environment = _terminal(place, folder).environment
        for name in ("EPIC_OMOP_HOME", "EPIC_OMOP_DATABASE_URL", "COLUMNS"):
            patched.setenv(name, environment[name])
        patched.setattr(RetryPolicy.__init__, "__defaults__", (1, 0.0, 0.0))

    def run(self, *arguments: str | Path) -> str:
        """What a command prints. Raises what it raises."""
        result = CliRunner().invoke(app, [str(one) for one in arguments])
        if result.exception:
            raise result.exception
        return result.output


@pytest.fixture
def terminal(place: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(place, tmp_path, monkeypatch)


def test_no_patient_is_named_in_files_logs_or_messages(
    place: World, terminal: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    """Every id of the world is searched for in the names of files, in the debug log and in what a terminal shows."""
    caplog.set_level("DEBUG")
    patient = place.patients()[1]
    told = [{"severity": "error", "code": "processing", "diagnostics": f"Patient/{patient} cannot be read"}]
    place.watched.answers["Goal"] = (503, orjson.dumps({"resourceType": "OperationOutcome", "issue": told}), -1)
    with pytest.raises(RemoteUnavailable) as caught:
        crawl(place.runtime, place.site, [patient])
    status = terminal.run("status")
    place.watched.answers.clear()
    done = terminal.run("crawl", "site_a", "--patient", patient)
    ids = {resource.get("id") for resource in generated(place.sandbox.state.desk.started.date())} - {None}
    names = "\n".join(str(path) for path in place.runtime.landing.root.rglob("*"))
    shown = "\n".join((caplog.text, str(caught.value), done, status, terminal.run("status"), names))
    assert "cannot be read" in shown
    assert "is not whole" in shown
    assert len(ids) > 500
    assert [one for one in ids if one in shown] == []


def test_the_commands_go_on_load_and_hydrate(place: World, terminal: Terminal, tmp_path: Path) -> None:
    place.watched.answers["Goal"] = (500, b"", -1)
    with pytest.raises(RemoteUnavailable, match="continues where it was"):
        terminal.run("crawl", "site_a", "--patients", tmp_path / "patients.csv")
    assert "crawl" in terminal.run("status")
    place.watched.answers.clear()
    assert f"{PATIENTS} patients" in terminal.run("crawl", "site_a", "--resume")
    assert place.rows("SELECT count(*) FROM cdm.person") == [(PATIENTS,)]
    place.content()
    with pytest.raises(UsageError, match="no unfinished crawl"):
        terminal.run("crawl", "site_a", "--resume")
    with pytest.raises(UsageError, match="which patients"):
        terminal.run("crawl", "site_a")
    with pytest.raises(UsageError, match="exclude each other"):
        terminal.run("crawl", "site_a", "--resume", "--patient", "e1")
    (tmp_path / "bad.csv").write_text("eGood\n../../etc\n")
    with pytest.raises(UsageError, match="number 2 is not a valid FHIR id"):
        terminal.run("crawl", "site_a", "--patients", tmp_path / "bad.csv")
    assert "resources fetched by reference" in terminal.run("hydrate", "site_a")
    assert place.rows("SELECT count(*) FROM cdm.provider")[0][0] > 0
    place.content()
    assert "fetched by reference" not in terminal.run("hydrate", "site_a")
    landed = terminal.run("crawl", "site_a", "--patient", place.patients()[0], "--no-load")
    number = place.jobs("crawl")[0].export_id
    assert f"--export {number}" in landed
    terminal.run("ingest", "--site", "site_a", "--export", str(number))
    assert place.jobs("crawl")[0].state == "published"
