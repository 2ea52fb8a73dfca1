"""Hydration against the simulated Epic and a real PostgreSQL: what an export lacks is fetched by reference, once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.core.errors import AuthenticationRefused, RemoteUnavailable
from pipeline.extract.bulk import ingest_folder
from pipeline.extract.rest.reads import ReferenceFetcher
from pipeline.extract.rest.session import rest_session
from pipeline.landing.reading import open_landed
from pipeline.landing.store import LandedExport
from pipeline.load import hydrated
from pipeline.load import hydration as hydration_module
from pipeline.load.hydration import Hydration, hydrate, newest_exports
from pipeline.load.load import LoadOptions
from pipeline.load.load import load as load_export
from pipeline.quality.verify import verify_landing
from tests.databases import Prepared
from tests.integration.rest_world import SHARED, World, generated, world
from tests.integration.support import observation, patient

HYDRATED = LoadOptions(hydrate=True)
LEFT_OUT = frozenset(SHARED)
OUTCOME = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "forbidden"}]}


@pytest.fixture
def lacking(demo_warehouse: Prepared, tmp_path: Path) -> Iterator[World]:
    """A site whose exports lack what patients share."""
    with world(demo_warehouse, tmp_path / "home", site={"hydrate": True}, left_out_types=LEFT_OUT) as made:
        yield made


def load(place: World, export: LandedExport) -> list[Hydration]:
    return load_export(place.runtime, place.site, export, HYDRATED).hydrations


def references(place: World, resource_type: str) -> list[str]:
    """Ids of a shared type that the world's patients refer to."""
    text = b"\n".join(
        line for export in place.landed for file in export.files for line in open_landed(file.path).read().splitlines()
    )
    ids = (resource.get("id") for resource in generated(place.sandbox.state.desk.started.date()))
    return [one for one in dict.fromkeys(ids) if f'"{resource_type}/{one}"'.encode() in text]


def test_a_hydrated_export_ends_as_a_whole_one(demo_warehouse: Prepared, tmp_path: Path) -> None:
    """Shared resources and some results are left out; the rows are those of an export that has them all."""
    # Nothing refers to a PractitionerRole, which says a provider's specialty: it cannot be fetched by reference.
    with world(demo_warehouse, tmp_path / "whole", left_out_types=frozenset({"PractitionerRole"})) as whole:
        started = whole.sandbox.state.desk.started
        load_export(whole.runtime, whole.site, whole.export(), HYDRATED)
        expected = whole.content()
    resources = list(generated(started.date()))
    results = [
        result["reference"].removeprefix("Observation/")
        for report in resources
        if report["resourceType"] == "DiagnosticReport"
        for result in report.get("result", ())
    ][::3]
    changes = {"left_out_types": LEFT_OUT, "left_out_ids": frozenset(results)}
    with world(demo_warehouse, tmp_path / "lacking", site={"hydrate": True}, **changes) as place:
        export = place.export()
        assert not {file.resource_type for file in export.files} & LEFT_OUT
        before, after = load(place, export)
        assert place.content() == expected
        assert (before.missing, after.missing, before.error, after.error) == (Counter(), Counter(), None, None)
        assert before.found["Medication"] == len(references(place, "Medication"))
        assert after.found == {"Observation": len(results)}
        reads = Counter(path for path in place.watched.paths if path.partition("/")[0] in {*SHARED, "Observation"})
        assert set(reads.values()) == {1}, "each once"
        assert reads.total() == before.asked + after.asked
        assert place.rows("SELECT state, count(*) FROM hydrated_reference GROUP BY state") == [("found", reads.total())]
        assert [job.state for job in place.jobs("hydration")] == ["published", "published"]
        assert not place.rows("SELECT 1 FROM export_job WHERE kind = 'replay'"), "facts come first: nothing twice"
        accounts = place.rows(
            "SELECT sum(lines), sum(loaded + excluded) FROM file_account WHERE export_id <> %s", export.export_id
        )
        assert accounts == [(reads.total(), reads.total())]
        assert hydrate(place.runtime, place.site, newest_exports(place.runtime, place.site)).asked == 0


def test_what_came_once_is_not_asked_for_again_before_its_days_are_over(lacking: World) -> None:
    first, _ = load(lacking, lacking.export())
    asked = len(lacking.watched.paths)
    again, _ = load(lacking, lacking.export())
    assert again.asked == 0
    assert not [path for path in lacking.watched.paths[asked:] if path.startswith(SHARED)]
    lacking.clock.sleep(lacking.site.hydrate_again_days * 86_400)
    later, _ = load(lacking, lacking.export())
    assert later.found >= first.found
    assert lacking.rows("SELECT count(*) FROM hydrated_reference") == [(later.asked,)]
    lines = lacking.rows("SELECT sum(unchanged) FROM file_account WHERE export_id = %s", later.landed[0].export_id)
    assert lines == [(first.asked,)], "the same bytes: unchanged"


def test_refusals_are_recorded_and_stop_nothing(lacking: World) -> None:
    export = lacking.export()
    gone = dict(zip(references(lacking, "Practitioner"), (403, 404, 410), strict=False))
    for number, status in gone.items():
        lacking.watched.answers[f"Practitioner/{number}"] = (status, orjson.dumps(OUTCOME), -1)
    before, _ = load(lacking, export)
    assert (before.missing, before.error) == ({"Practitioner": 3}, None)
    assert lacking.rows("SELECT count(*) FROM cdm.provider") == [(before.found["Practitioner"],)]
    assert sorted(lacking.rows("SELECT status FROM hydrated_reference WHERE state = 'missing'")) == [
        (403,),
        (404,),
        (410,),
    ]
    assert "Practitioner 3" in before.summary()
    asked = len(lacking.watched.paths)
    assert load(lacking, lacking.export())[0].asked == 0
    assert not lacking.watched.paths[asked:] or not [p for p in lacking.watched.paths[asked:] if p.startswith("Practi")]
    waiting = lacking.rows("SELECT count(*) FROM reference WHERE state = 'pending' AND role LIKE '%.provider_id'")[0][0]
    assert waiting > 0
    lacking.watched.answers.clear()
    lacking.clock.sleep(lacking.site.hydrate_again_days * 86_400)
    result = hydrate(lacking.runtime, lacking.site, [], ["Practitioner"])
    assert result.found == {"Practitioner": 3}, "found by the rows that wait, without looking through an export"
    for landed in result.landed:
        load_export(lacking.runtime, lacking.site, landed, HYDRATED)
    lacking.content()
    assert lacking.rows("SELECT count(*) FROM reference WHERE state = 'pending' AND role LIKE '%.provider_id'") == [
        (0,)
    ]


def test_a_server_that_is_down_ends_the_hydration_and_not_the_load(lacking: World) -> None:
    export = lacking.export()
    for resource_type in SHARED:
        for number in references(lacking, resource_type):
            lacking.watched.answers[f"{resource_type}/{number}"] = (500, b"", -1)
    before, _ = load(lacking, export)
    assert isinstance(before.error, RemoteUnavailable)
    assert 3 <= before.failed.total() < 20, "the rest is not asked for"
    assert lacking.rows("SELECT count(*) FROM cdm.person") == [(12,)]
    assert not lacking.rows("SELECT 1 FROM hydrated_reference")
    lacking.watched.answers.clear()
    before, _ = load(lacking, lacking.export())
    assert before.error is None
    assert before.found["Practitioner"] == 5
    lacking.content()


def test_a_single_failure_is_left_for_the_next_run(lacking: World) -> None:
    export = lacking.export()
    number = references(lacking, "Medication")[0]
    lacking.watched.answers[f"Medication/{number}"] = (503, b"", -1)
    before, _ = load(lacking, export)
    assert (before.failed, before.error) == ({"Medication": 1}, None)
    assert before.found["Practitioner"] == 5
    lacking.watched.answers.clear()
    assert hydrate(lacking.runtime, lacking.site, [export]).found == {"Medication": 1}


def test_types_without_access_are_named_and_not_asked_for(demo_warehouse: Prepared, tmp_path: Path) -> None:
    readable = [name for name in (*SHARED, "Patient", "Encounter", "MedicationRequest") if name != "Practitioner"]
    scopes = tuple(f"system/{name}.rs" for name in readable)
    changes = {"left_out_types": LEFT_OUT, "scopes": scopes}
    types = ("Patient", "Encounter", "MedicationRequest")
    with world(demo_warehouse, tmp_path / "home", site={"hydrate": True, "resource_types": types}, **changes) as place:
        before, _ = load(place, place.export())
        assert "Practitioner" in before.refused_types
        assert place.watched.asked("Practitioner") == []
        assert before.found["Medication"] > 0
        place.content()


def test_an_api_that_is_not_registered_is_seen_after_a_few_refusals(lacking: World) -> None:
    """403 for every read although the scope is granted: rule 8."""
    lacking.export()
    ids = [f"e{number}" for number in range(60)]
    for number in ids:
        lacking.watched.answers[f"Location/{number}"] = (403, orjson.dumps(OUTCOME), -1)
    with rest_session(lacking.runtime, lacking.site) as client:
        fetcher = ReferenceFetcher(client)
        responses = list(fetcher.responses([f"Location/{number}" for number in ids]))
    assert fetcher.refused_types == ("Location",)
    assert 20 <= len(responses) < 30
    assert len(lacking.watched.asked("Location")) == len(responses)


def test_a_token_that_is_refused_ends_the_hydration_and_not_the_load(lacking: World) -> None:
    export = lacking.export()
    lacking.sandbox.state.tokens._keys["client-1"] = []  # the key is withdrawn
    lacking.sandbox.state.tokens.revoke_all()
    before, after = load(lacking, export)
    assert isinstance(before.error, AuthenticationRefused)
    assert after.landed == []
    assert lacking.rows("SELECT count(*) FROM cdm.person") == [(12,)]


def test_a_token_that_is_refused_in_the_middle_loses_nothing_that_came(lacking: World) -> None:
    export = lacking.export()
    answered = {f"Practitioner/{number}" for number in references(lacking, "Practitioner")[:2]}
    for path in answered:
        lacking.watched.answers[path] = (401, b"", -1)
    before, _ = load(lacking, export)
    assert isinstance(before.error, AuthenticationRefused)
    assert before.found.total() > 0
    found = lacking.rows("SELECT count(*) FROM hydrated_reference WHERE state = 'found'")
    assert found == [(before.found.total(),)]
    lacking.watched.answers.clear()
    before, _ = load(lacking, lacking.export())
    assert before.error is None
    assert lacking.rows("SELECT count(*) FROM cdm.provider") == [(5,)]
    lacking.content()


def test_documents_only_where_the_setting_says_so(lacking: World) -> None:
    export = lacking.export()
    load(lacking, export)
    assert lacking.watched.asked("Binary") == []
    place = lacking.with_site(hydrate_types=(*lacking.site.hydrate_types, "Binary"))
    result = hydrate(place.runtime, place.site, [export])
    documents = sum(file.lines for file in export.files if file.resource_type == "DocumentReference")
    assert result.found == {"Binary": documents}
    assert documents > 0
    (landed,) = result.landed
    (file,) = landed.files
    assert orjson.loads(open_landed(file.path).read().splitlines()[0])["contentType"] == "text/html"
    load_export(place.runtime, place.site, landed, HYDRATED)
    place.content()


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@pytest.mark.deep
@pytest.mark.parametrize("step", ["kept", "recorded", "finished", "saved"])
def test_a_run_that_ended_early_is_finished_by_the_next(
    lacking: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What was fetched is loaded, and fetched once, wherever the first process ended after its first batch."""
    export = lacking.export()
    monkeypatch.setattr(hydration_module, "_BATCH", 10)
    owner: Any
    owner, name, number = {
        "kept": (hydration_module, "_write", 3),
        "recorded": (hydration_module.hydrated, "record", 2),
        "finished": (hydration_module, "_finish", 1),
        "saved": (hydration_module.export_jobs, "save_landed", 1),
    }[step]
    real, calls = getattr(owner, name), 0

    def ends_early(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Killed
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, ends_early)
        with pytest.raises(Killed):
            load(lacking, export)
    load(lacking, export)
    reads = Counter(path for path in lacking.watched.paths if path.startswith(SHARED))
    assert len(reads) == 45
    repeated = {"kept": 10, "recorded": 10, "finished": 0, "saved": 0}[step]
    assert reads.total() - len(reads) <= repeated, "at most the batch under way"
    assert lacking.rows("SELECT count(*) FROM hydrated_reference WHERE state = 'found'") == [(45,)]
    assert {job.state for job in lacking.jobs("hydration")} == {"published"}
    assert lacking.rows("SELECT count(*) FROM cdm.provider") == [(5,)]
    lacking.content()
    with lacking.runtime.connect() as connection:
        assert [check for check in verify_landing(connection, lacking.runtime.landing) if not check.ok] == []


def test_two_hydrations_at_once_are_one(lacking: World) -> None:
    export = lacking.export()
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(hydrate(lacking.runtime, lacking.site, [export]))
        except Exception as error:  # noqa: BLE001 - compared below
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reads = Counter(path for path in lacking.watched.paths if path.startswith(SHARED))
    assert set(reads.values()) == {1}


def test_the_pace_is_kept(lacking: World) -> None:
    place = lacking.with_site(requests_per_second=2.0)
    export = place.export()
    before = place.clock.now()
    result = hydrate(place.runtime, place.site, [export])
    seconds = (place.clock.now() - before).total_seconds()
    assert seconds >= (result.asked - 1) / 2


def test_roles_are_fetched_and_their_practitioners_with_them(lacking: World, tmp_path: Path) -> None:
    """A performer who is a role: the role is fetched, and from it the practitioner, also in a later run."""
    role = next(one for one in generated(lacking.sandbox.state.desk.started.date()) if one["resourceType"] == SHARED[3])
    both = lacking.with_site(hydrate_types=("Practitioner", "PractitionerRole"))
    role_alone = lacking.with_site(hydrate_types=("PractitionerRole",))
    providers = "SELECT provider_id IS NOT NULL FROM cdm.measurement ORDER BY 1"
    load(role_alone, _observed_by(role_alone, tmp_path / "first", "o1", role["id"]))
    assert lacking.watched.asked("PractitionerRole") == [f"PractitionerRole/{role['id']}"]
    assert lacking.rows(providers) == [(False,)]
    result = hydrate(both.runtime, both.site, [], ("Practitioner",))
    assert result.found == {"Practitioner": 1}
    for export in result.landed:
        load_export(both.runtime, both.site, export)
    assert lacking.rows(providers) == [(True,)]
    load(both, _observed_by(both, tmp_path / "second", "o2", role["id"]))
    assert lacking.rows(providers) == [(True,), (True,)]
    assert len(lacking.watched.asked("PractitionerRole")) == len(lacking.watched.asked("Practitioner")) == 1


def test_members_of_panels_are_fetched_and_their_members_with_them(lacking: World, tmp_path: Path) -> None:
    """A panel names results that the export lacks, and one of these is a panel; nothing is asked for twice."""
    panel = observation("panel", hasMember=[{"reference": f"Observation/{name}"} for name in ("a", "inner", "gone")])
    inner = observation("inner", hasMember=[{"reference": "Observation/b"}, {"reference": "Observation/panel"}])
    for fetched in (observation("a"), inner, observation("b")):
        line = orjson.dumps({"resourceType": "Observation", **fetched})
        lacking.watched.answers[f"Observation/{fetched['id']}"] = (200, line, -1)
    _, late = load(lacking, _folder(lacking, tmp_path / "panel", Patient=patient(), Observation=panel))
    assert (late.found, late.missing) == ({"Observation": 3}, {"Observation": 1})
    rows = "SELECT resource_id FROM row_source WHERE cdm_table = 'measurement' ORDER BY 1"
    assert lacking.rows(rows) == [("a",), ("b",), ("inner",), ("panel",)]
    assert sorted(lacking.watched.asked("Observation")) == [
        f"Observation/{name}" for name in ("a", "b", "gone", "inner")
    ]
    assert hydrate(lacking.runtime, lacking.site, newest_exports(lacking.runtime, lacking.site)).asked == 0


def test_devices_only_where_the_setting_says_so(lacking: World, tmp_path: Path) -> None:
    """The device of a procedure, which had no code until then, also where the procedure came in an earlier run."""
    code = {"coding": [{"system": "http://snomed.info/sct", "code": "14106009"}]}
    device = {"resourceType": "Device", "id": "v1", "type": code, "patient": {"reference": "Patient/p1"}}
    lacking.watched.answers["Device/v1"] = (200, orjson.dumps(device), -1)
    procedure = {
        "id": "x1",
        "status": "completed",
        "subject": {"reference": "Patient/p1"},
        "code": {"text": "an implantation"},
        "performedDateTime": "2024-03-10",
        "focalDevice": [{"manipulated": {"reference": "Device/v1"}}],
    }
    load(lacking, _folder(lacking, tmp_path / "procedure", Patient=patient(), Procedure=procedure))
    assert lacking.watched.asked("Device") == []
    assert lacking.rows("SELECT device_source_value FROM cdm.device_exposure") == [(None,)]
    with_devices = lacking.with_site(hydrate_types=(*lacking.site.hydrate_types, "Device"))
    load(with_devices, _folder(with_devices, tmp_path / "later", Patient=patient("p2")))
    assert lacking.watched.asked("Device") == ["Device/v1"]
    assert lacking.rows("SELECT device_source_value FROM cdm.device_exposure") == [("14106009",)]


def test_keys_of_identifiers_are_not_asked_for(lacking: World, tmp_path: Path) -> None:
    """No server can be asked for a hash: lines that wait for one are not read again each night."""
    reference = "Practitioner?identifier=urn:example:epic|nobody"
    load(lacking, _observed_by(lacking, tmp_path / "folder", "o1", reference))
    assert lacking.rows("SELECT state, is_by_identifier FROM reference WHERE role = 'measurement.provider_id'") == [
        ("pending", True)
    ]
    with lacking.runtime.connect() as connection:
        assert hydrated.pending_lines(connection, lacking.site.name, lacking.site.hydrate_types) == []
        assert hydrated.pending_targets(connection, lacking.site.name, lacking.site.hydrate_types).is_empty()


def _observed_by(place: World, folder: Path, name: str, role: str) -> LandedExport:
    """An export of one patient, with one result by a PractitionerRole, or by a conditional reference."""
    performer = {"reference": role if "?" in role else f"PractitionerRole/{role}"}
    return _folder(place, folder, Patient=patient(), Observation=observation(name, performer=[performer]))


def _folder(place: World, folder: Path, **resources: dict[str, Any]) -> LandedExport:
    """An export with one resource of each of these types."""
    folder.mkdir()
    for resource_type, resource in resources.items():
        text = orjson.dumps({"resourceType": resource_type, **resource}) + b"\n"
        (folder / f"{resource_type}.ndjson").write_bytes(text)
    return ingest_folder(place.runtime, place.site.name, folder)
