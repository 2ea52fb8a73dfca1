"""Erasing a person: nothing of theirs is left anywhere, all else stays as it was, and nothing brings them back."""

from __future__ import annotations

import base64
import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from psycopg import sql

from pipeline.core.clock import ManualClock
from pipeline.core.errors import SiteBusy, UsageError
from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import MAPPINGS_FOLDER, Settings, SiteSettings
from pipeline.erasure.run import erasing
from pipeline.extract.bulk import new_job
from pipeline.extract.rest.crawl import _not_erased
from pipeline.fhir.identity import SurrogateKeys
from pipeline.landing.crawl_spool import CrawlSpool
from pipeline.landing.reading import open_landed
from pipeline.landing.store import LandedExport
from pipeline.quality.verify import verify_landing
from pipeline.warehouse import crawls, export_jobs
from pipeline.warehouse.erased import put_tombstones
from pipeline.warehouse.export_jobs import SiteWork, site_lock
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import install_schemas
from pipeline.warehouse.vocabulary import compile_index, load_vocabulary
from tests.command_line import CommandLine, killed
from tests.conftest import fresh_database
from tests.integration.support import START, Warehouse, encounter, observation, patient, reference
from tests.warehouse_content import warehouse_content

GONE = "eAnna-Gone.7f3"
MERGED = "eAnna-Older.1b"
STAYS = "eBert-Stays.22"
BINARY = "eBinary-of-Anna"

#: Texts by which the person could be known, wherever they stand.
TELLING = (GONE, MERGED, "Annabell", "MRN-4711-A", "Lindenweg 99", "sees-a-purple-heron", BINARY)


def note(resource_id: str, person: str, text: str, **more: Any) -> dict[str, Any]:
    attachment = {"contentType": "text/plain", "data": base64.b64encode(text.encode()).decode()}
    return {
        "id": resource_id,
        "status": "current",
        "type": {"coding": [{"system": "http://loinc.org", "code": "11506-3"}]},
        "subject": reference("Patient", person),
        "date": "2025-01-02T15:40:00Z",
        "content": [{"attachment": attachment}],
        **more,
    }


def anna(resource_id: str = GONE, **more: Any) -> dict[str, Any]:
    return patient(
        resource_id,
        name=[{"family": "Annabell"}],
        identifier=[{"system": "urn:oid:1.2.840.114350", "value": "MRN-4711-A"}],
        address=[{"line": ["Lindenweg 99"], "city": "Adorf", "state": "MA", "postalCode": "02139"}],
        **more,
    )


def bert(**more: Any) -> dict[str, Any]:
    return patient(STAYS, address=[{"city": "Bstadt", "state": "MA", "postalCode": "02140"}], **more)


def world() -> dict[str, list[dict[str, Any] | bytes]]:
    """Lines of two patients who share encounters, practitioners and mentions, with all that a line can become."""
    who = {"subject": reference("Patient", GONE)}
    absolute = {"reference": f"https://fhir.example.org/R4/Patient/{GONE}/_history/3", "display": "Annabell, A."}
    by = reference("Practitioner", "d1")
    older = patient(
        MERGED, link=[{"other": reference("Patient", GONE), "type": "replaced-by"}], name=[{"family": "Annabell"}]
    )
    return {
        "Patient": [anna(), bert(), older],
        "Practitioner": [{"id": "d1"}],
        "Encounter": [encounter("eEnc-Anna", GONE), encounter("eEnc-Bert", STAYS)],
        "Observation": [
            observation("o-anna", GONE, subject=absolute, encounter=reference("Encounter", "eEnc-Anna")),
            observation("o-older", MERGED),
            observation("o-bert", STAYS, encounter=reference("Encounter", "eEnc-Bert"), performer=[by]),
            # a result of the other one in her stay, and one that is about her as well
            observation("o-in-her-stay", STAYS, encounter=reference("Encounter", "eEnc-Anna")),
            observation("o-focus", STAYS, focus=[{**absolute}], valueQuantity={"value": 1.10, "unit": "mg/dL"}),
            observation("o-wrong", GONE, status="entered-in-error"),
            observation("o-rejected", GONE, effectiveDateTime=None, note=[{"text": "sees-a-purple-heron"}]),
            observation("o-bert-rejected", STAYS, effectiveDateTime="2025-13-45", focus=[reference("Patient", GONE)]),
            f'{{"resourceType":"Observation","id":"o-broken","subject":{{"reference":"Patient/{GONE}"}},"x":'.encode(),
            b'{"resourceType":"Observation","id":"o-broken-too","status"',
        ],
        "DocumentReference": [
            note("n-anna", GONE, "She sees-a-purple-heron."),
            note("n-anna-2", GONE, "", content=[{"attachment": {"url": f"Binary/{BINARY}"}}]),
            note("n-bert", STAYS, "He sees nothing."),
        ],
        "Binary": [
            {"id": BINARY, "contentType": "text/plain", "data": base64.b64encode(b"sees-a-purple-heron").decode()},
            {"id": "other", "contentType": "text/plain", "data": base64.b64encode(b"He sees nothing.").decode()},
        ],
        "RelatedPerson": [{"id": "r1", "patient": reference("Patient", GONE), "name": [{"family": "Annabell"}]}],
        "QuestionnaireResponse": [{"id": "q1", "status": "completed", **who, "item": [{"text": "Annabell"}]}],
        "Appointment": [
            {"id": "a1", "status": "booked", "participant": [{"actor": reference("Patient", GONE), "status": "accepted"}]}
        ],
        "Provenance": [
            {"id": "v1", "target": [reference("Encounter", "eEnc-Anna")]},
            {"id": "v2", "target": [reference("Encounter", "eEnc-Anna"), reference("Encounter", "eEnc-Bert")]},
        ],
        "Group": [{"id": "g1", "member": [{"entity": {**absolute}}, {"entity": reference("Patient", STAYS)}]}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def template(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A database with schemas and vocabulary, and a home with the compiled index, to be copied."""
    home = tmp_path_factory.mktemp("prepared") / "home"
    with fresh_database(postgres_url) as url:
        install_schemas(url, cdm="cdm", vocab="vocab", etl="etl")
        release = load_vocabulary(url, MAPPINGS_FOLDER / "demo_vocabulary", vocab_schema="vocab", etl_schema="etl")
        compile_index(url, release, vocab_schema="vocab", home=home)
        yield url, home


class Places:
    """Makes warehouses that begin alike."""

    def __init__(self, postgres_url: str, template: tuple[str, Path], folder: Path) -> None:
        self._server, (self._template, self._home), self._folder = postgres_url, template, folder
        self._open: list[Any] = []

    def new(self) -> Warehouse:
        folder = self._folder / f"place-{len(self._open)}"
        (folder / "home").mkdir(parents=True)
        for item in self._home.iterdir():
            (folder / "home" / item.name).symlink_to(item)
        database = fresh_database(self._server, urlsplit(self._template).path[1:])
        settings = Settings(
            home=folder / "home",
            database_url=database.__enter__(),
            workers=1,
            surrogate_salt="salted",
            sites={"one": SiteSettings(name="one", mapping=MappingOptions(notes="on"))},
        )
        self._open.append(database)
        return Warehouse(Runtime(settings, ManualClock(START)), folder)

    def close(self) -> None:
        for database in self._open:
            database.__exit__(None, None, None)


@pytest.fixture
def places(postgres_url: str, template: tuple[str, Path], tmp_path: Path) -> Iterator[Places]:
    made = Places(postgres_url, template, tmp_path)
    yield made
    made.close()


def erase(place: Warehouse, *patients: str, site: str = "one", rewrite_tables: bool = False) -> dict[str, int]:
    with erasing(place.runtime, site, patients) as work:
        counts = dict(work.counts)
        assert work.run(rewrite_tables=rewrite_tables) == []
    place.assert_whole()
    return counts


def content(place: Warehouse, *, state: bool = True) -> dict[str, Any]:
    with place.runtime.connect() as connection:
        return warehouse_content(connection, state=state)


def file_content(path: Path) -> bytes:
    """What a file holds; of a landed one, what was compressed."""
    return open_landed(path.with_suffix("")).read() if path.suffix == ".zst" else path.read_bytes()


def traces(place: Warehouse, *texts: str) -> dict[str, list[str]]:
    """Where texts still stand: files of the home, and columns of text or bytes in any table."""
    found: dict[str, list[str]] = {}
    home = place.runtime.settings.home
    for text in texts:
        coded = [text.encode()]
        if len(text) > 15:  # long enough for its middle to be found in base64 whatever stands before it
            coded += [base64.b64encode(b"x" * shift + text.encode())[4:-4] for shift in range(3)]
        for path in home.rglob("*"):
            if path.is_file() and not path.is_symlink() and any(code in file_content(path) for code in coded):
                found.setdefault(text, []).append(str(path.relative_to(home)))
        found.setdefault(text, []).extend(_columns_with(place, text))
    return {text: where for text, where in found.items() if where}


def _columns_with(place: Warehouse, text: str) -> Iterator[str]:
    with place.runtime.connect() as connection:
        columns = connection.execute(
            "SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns"
            " JOIN information_schema.tables USING (table_schema, table_name) WHERE table_type = 'BASE TABLE'"
            " AND table_schema IN ('cdm', 'etl') AND data_type IN ('text', 'character varying', 'bytea', 'jsonb')"
        ).fetchall()
        for schema, table, column, kind in columns:
            if kind == "bytea":
                condition, parameter = "position(%s IN {}) > 0", text.encode()
            else:
                condition, parameter = "position(%s IN {}::text) > 0", text  # type: ignore[assignment]
            query = sql.SQL("SELECT count(*) FROM {} WHERE " + condition).format(
                sql.Identifier(schema, table), sql.Identifier(column)
            )
            row = connection.execute(query, (parameter,)).fetchone()
            if row and row[0]:
                yield f"{schema}.{table}.{column}"


def assert_files_hold(place: Warehouse) -> None:
    with place.runtime.connect() as connection:
        assert [check for check in verify_landing(connection, place.runtime.landing) if not check.ok] == []


def test_nothing_of_a_person_is_left_and_all_else_stays(places: Places) -> None:
    place, forewarned, without = places.new(), places.new(), places.new()
    place.load(world())
    place.load({"Patient": [anna()], "Observation": [observation("other-site", GONE)]}, site="two")
    assert place.value("SELECT count(*) FROM cdm.note") == 3
    assert len(traces(place, *TELLING)) == len(TELLING)
    letters = place.value("SELECT count(*) FROM dead_letter")

    counts = erase(place, GONE)
    assert counts["person"] == 1
    assert counts["measurement"] == 2
    assert counts["note"] == 2
    assert counts["landing: lines"] == 15
    assert counts["landing: lines of others"] == 4
    assert counts["etl.dead_letter"] == 2

    left = traces(place, *TELLING)
    assert {where for text in left for where in left[text] if "two" not in where and "site" not in where} <= {
        "etl.resource_state.resource_id"  # of the same id at the other site
    }
    assert place.rows("SELECT DISTINCT site FROM resource_state JOIN site_resource_type USING (site_resource_type_id)"
                      " WHERE resource_id = %s", GONE) == [("two",)]  # fmt: skip
    assert place.value("SELECT count(*) FROM dead_letter") == letters
    assert_files_hold(place)

    # A warehouse that knew of the erasure beforehand says the same, and one that never saw the person the same rows.
    keys = SurrogateKeys("one", "salted")
    with forewarned.runtime.connect() as connection:
        put_tombstones(connection, "one", [keys.of("Patient", GONE), keys.of("Patient", MERGED)], START, {})
    report, *_ = forewarned.load(world())
    forewarned.load({"Patient": [anna()], "Observation": [observation("other-site", GONE)]}, site="two")
    assert forewarned.rows("SELECT sum(count) FROM exclusion WHERE reason = 'person_erased'") == [(15,)]
    assert report.outcomes["excluded"] >= 15
    assert content(forewarned) == content(place)
    assert forewarned.checksums()["metadata"] == place.checksums()["metadata"]
    assert_files_hold(forewarned)
    kept = {
        name: [line for line in lines if not names(line, GONE, MERGED, BINARY, "v1") or names(line, STAYS)]
        for name, lines in world().items()
    }
    without.load(kept)
    without.load({"Patient": [anna()], "Observation": [observation("other-site", GONE)]}, site="two")
    assert content(without, state=False) == content(place, state=False)


def names(line: dict[str, Any] | bytes, *texts: str) -> bool:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    return any(text.encode() in raw for text in texts)


def test_later_exports_bring_nothing_back(places: Places) -> None:
    place = places.new()
    place.load(world())
    erase(place, GONE)
    before, letters = content(place), place.rows("SELECT id, state FROM dead_letter ORDER BY id")

    again = place.runtime.landing.open("one", 1)
    report, *_ = place.ingest(again, force=True)  # the export from which they came
    assert report.outcomes["excluded"] >= 15
    assert content(place) == before
    (night,) = place.load(world())
    assert night.outcomes["loaded"] == night.outcomes["superseded"] == 0
    assert night.outcomes["unchanged"] >= 10
    assert night.rows_inserted.total() == 0
    assert content(place) == before
    assert place.rows("SELECT id, state FROM dead_letter ORDER BY id") == letters
    place.load({"Observation": [observation("new", GONE), observation("newer", MERGED)], "Patient": [anna()]})
    assert content(place) == before
    assert traces(place, *TELLING) == {}
    assert_files_hold(place)


def test_what_is_asked_for_must_be_there_and_the_site_free(places: Places) -> None:
    place = places.new()
    place.load(world())
    before = content(place), place.checksums()
    with pytest.raises(UsageError, match=r"1 of 2 patients in site one \(in the order given: 2\)"):
        erase(place, GONE, "nobody-1")
    for work in (SiteWork.INGEST, SiteWork.HYDRATION):
        with place.runtime.connect() as other, site_lock(other, "one", work), pytest.raises(SiteBusy):
            erase(place, GONE)
    with erasing(place.runtime, "one", [GONE]) as work:  # a look, and nobody said yes
        assert work.counts["measurement"] == 2
        assert set(work.patients.values()) == {"one"}
        assert len(work.patients) == 2
    assert (content(place), place.checksums()) == before
    assert place.value("SELECT count(*) FROM erased_person") == 0
    erase(place, MERGED)  # the same person by another of their ids
    assert traces(place, *TELLING) == {}
    assert erase(place, GONE).get("landing: lines", 0) == 0


def _landed_deletions(place: Warehouse) -> LandedExport:
    """An export with a file of deleted resources, and an outcome that names a patient."""
    names = (f"Patient/{MERGED}", "Observation/o-anna", "Observation/o-bert", f"Patient/{STAYS}")
    entries = [{"request": {"method": "DELETE", "url": name}} for name in names]
    bundle = json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}).encode()
    issue = {"severity": "error", "code": "processing", "diagnostics": f"Patient/{GONE} could not be read"}
    outcome = json.dumps({"resourceType": "OperationOutcome", "issue": [issue]}).encode()
    assert isinstance(place.runtime.clock, ManualClock)
    place.runtime.clock.advance(86_400)
    with place.runtime.connect() as connection:
        job = new_job(place.runtime, connection, "one", "folder")
        draft = place.runtime.landing.begin("one", job.export_id)
        kept = []
        for number, kind, category, line in (
            (1, "Bundle", "deleted", bundle),
            (2, "OperationOutcome", "outcomes", outcome),
        ):
            with draft.writer(number, kind, category) as writer:  # type: ignore[arg-type] # a literal of two
                writer.write(line + b"\r\n")
                kept.append(draft.keep(writer, number, kind))
        export = draft.finish("folder", job.requested_at, (), deleted=(kept[0],), outcomes=(kept[1],))
        export_jobs.save_landed(connection, export, place.runtime.clock.now())
        connection.commit()
    return export


def test_deletions_outcomes_crawls_and_halves_of_files(places: Places) -> None:
    place = places.new()
    place.load(world())
    export = _landed_deletions(place)
    runtime = place.runtime
    with runtime.connect() as connection:
        job = new_job(runtime, connection, "one", "crawl", group="crawl x", patients=[STAYS, GONE])
        connection.commit()
        draft = runtime.landing.begin("one", job.export_id)
        for position, who in ((1, STAYS), (2, GONE)):
            with CrawlSpool(draft).entry(position, "Observation") as entry:
                for number in range(2):
                    line = {
                        "resourceType": "Observation",
                        **observation(f"c-{position}-{number}", who, focus=[reference("Patient", GONE)]),
                    }
                    entry.add("Observation", json.dumps(line).encode())
                entry.commit()
            crawls.save_search(
                connection, job.export_id, crawls.CrawlSearch(position, "Observation", "complete", 2, START, "")
            )
        connection.commit()
    half = draft.folder / "files" / "Condition.00001.ndjson.part"
    half.write_bytes(json.dumps({"subject": reference("Patient", GONE)}).encode()[:-3])

    counts = erase(place, GONE)
    assert counts["landing: unfinished files"] == 1
    assert counts["etl.crawl_patient"] == 1
    assert traces(place, *TELLING) == {}
    with runtime.connect() as connection:
        assert crawls.patients(connection, job.export_id) == [(1, STAYS)]
        assert [search.position for search in crawls.searches(connection, job.export_id)] == [1]
        site = runtime.settings.site_or_folder("one")
        assert _not_erased(runtime, connection, site, [GONE, STAYS]) == [STAYS]
        with pytest.raises(UsageError):
            _not_erased(runtime, connection, site, [GONE])
    assert not half.exists()
    files, _ = CrawlSpool(draft).assemble(3000)
    assert [file.lines for file in files] == [2]

    (report,) = place.ingest(runtime.landing.open("one", export.export_id))
    assert report.outcomes == Counter(excluded=4)
    assert dict(
        place.rows("SELECT reason, sum(count) FROM exclusion WHERE export_id = %s GROUP BY reason", export.export_id)
    ) == {
        "person_erased": 2,
        "deleted": 2,
    }
    assert place.value("SELECT count(*) FROM cdm.person") == 0
    assert_files_hold(place)


#: One after the other: each run goes on where the last one was killed.
KILLS = (
    ("pipeline.erasure.run:put_tombstones", "after", 1),
    ("pipeline.erasure.rows:_remove_from_etl", "after", 2),
    ("pipeline.erasure.run:Erasing._clear_warehouse", "after", 1),
    ("pipeline.landing.store:LandingDraft.write_manifest", "after", 1),
    ("pipeline.landing.erased:_Rewritten.take_place", "after", 3),
    ("pipeline.erasure.run:finish_tombstones", "before", 1),
)


def test_a_killed_erasure_is_finished_by_the_next_one(places: Places) -> None:
    place, calm = places.new(), places.new()
    for one in (place, calm):
        one.load(world())
        _landed_deletions(one)
    erase(calm, GONE)
    runtime = place.runtime
    assert runtime.settings.database_url
    terminal = CommandLine(runtime.settings.home, runtime.settings.database_url, {"EPIC_OMOP_SURROGATE_SALT": "salted"})
    listed = place.folder / "patients.txt"
    listed.write_text(f"# who asked\nPatient/{GONE}\n")
    command = ("erase", "--site", "one", "--patient-file", listed, "--yes")
    shown = terminal.run(*command[:-1], "--dry-run")
    assert "would go" in shown.out
    assert GONE not in shown.out
    assert terminal.run(*command[:-1], code=2).err.startswith("Error: Erasing cannot be undone")
    for where, when, number in KILLS:
        terminal.run(*command, program=killed(where, when, number), code=-signal.SIGKILL)
    assert "interrupted" in terminal.run("erase", "--list").out
    # from the first moment on, no load brings anything back
    terminal.run("erase", "--site", "one", "--resume", "--yes", "--rewrite-tables")
    assert "done" in terminal.run("erase", "--list").out
    assert traces(place, *TELLING) == {}
    assert content(place) == content(calm)
    assert_files_hold(place)
    place.assert_whole()
    assert place.rows("SELECT event, outcome, resource_type, workflow FROM access_log WHERE event = 'erase'") == [
        ("erase", "ok", "Patient", "epic-omop erase")
    ]
    (tombstones,) = place.rows("SELECT count(*), count(finished_at), count(DISTINCT erased_at) FROM erased_person")
    assert tombstones == (2, 2, 1)


def test_a_tombstone_that_a_killed_erasure_left_already_holds(places: Places) -> None:
    place = places.new()
    export = place.land(world())
    keys = SurrogateKeys("one", "salted")
    with place.runtime.connect() as connection:
        put_tombstones(connection, "one", [keys.of("Patient", GONE), keys.of("Patient", MERGED)], START, {})
    place.ingest(export)
    assert place.value("SELECT count(*) FROM cdm.person") == 1
    assert traces(place, *TELLING) == {}


def test_an_encounter_inside_of_a_visit_of_theirs_becomes_a_visit_again(places: Places) -> None:
    place = places.new()
    files = {
        "Patient": [anna(), bert()],
        "Encounter": [
            encounter("eEnc-Anna", GONE),
            encounter("eEnc-Newborn", STAYS, partOf=reference("Encounter", "eEnc-Anna")),
        ],
        "Observation": [observation("o-newborn", STAYS, encounter=reference("Encounter", "eEnc-Newborn"))],
    }
    place.load(files)
    assert place.value("SELECT count(*) FROM cdm.visit_detail") == 1
    erase(place, GONE)
    assert place.rows("SELECT visit_occurrence_id, visit_detail_id FROM cdm.measurement") == [(None, None)]
    place.load(files)
    assert place.value("SELECT count(*) FROM cdm.visit_detail") == 0
    assert place.rows("SELECT resource_id FROM row_source WHERE cdm_table = 'visit_occurrence'") == [("eEnc-Newborn",)]
    assert place.value("SELECT visit_occurrence_id IS NOT NULL FROM cdm.measurement")
    assert (
        place.value("SELECT count(*) FROM reference WHERE state = 'pending' AND role LIKE '%.visit_occurrence_id'") == 0
    )
    assert traces(place, "Annabell", "MRN-4711-A", GONE) == {}


def test_a_person_of_two_sites_goes_from_both_and_a_corrected_line_stays(places: Places) -> None:
    place = places.new()
    crosswalk = place.folder / "crosswalk.csv"
    crosswalk.write_text(f"site,patient_id,same_as_site,same_as_patient_id\ntwo,eAnna-there,one,{GONE}\n")
    settings = place.runtime.settings.model_copy(update={"person_crosswalk": crosswalk})
    place.runtime = Runtime(settings, place.runtime.clock)
    # a result that was hers by mistake, and is his since the second export
    place.load({"Patient": [anna(), bert()], "Observation": [observation("o-moved", GONE)]})
    place.load({"Observation": [observation("o-moved", STAYS)]})
    place.load({"Patient": [anna("eAnna-there")], "Observation": [observation("o-there", "eAnna-there")]}, site="two")
    assert place.value("SELECT count(*) FROM cdm.person") == 2
    counts = erase(place, GONE)
    assert (counts["person"], counts["measurement"]) == (1, 1)
    assert traces(place, *TELLING, "eAnna-there") == {}
    assert place.rows("SELECT resource_id FROM row_source WHERE cdm_table = 'measurement'") == [("o-moved",)]
    assert place.value("SELECT count(*) FROM erased_person WHERE finished_at IS NOT NULL") == 2
    place.load({"Patient": [anna("eAnna-there")], "Observation": [observation("o-there", "eAnna-there")]}, site="two")
    assert place.value("SELECT count(*) FROM cdm.person") == 1
    assert_files_hold(place)
