"""Resources that complete exports no longer hold: kept or deleted by the site's policy, and back when they come again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfirmationNeeded
from pipeline.core.settings import SiteSettings, load_settings, register_site
from pipeline.erasure.run import erasing
from pipeline.extract.notes import export_notes
from pipeline.landing.store import LandedExport
from pipeline.warehouse.runtime import Runtime
from tests.integration.support import Warehouse, encounter, observation, patient

Files = Mapping[str, Sequence[Mapping[str, Any] | bytes]]


def under(warehouse: Warehouse, vanished: str = "delete", left_group: str = "keep", **more: Any) -> Warehouse:
    """The same warehouse with other settings of its site."""
    site = SiteSettings(name="one", vanished=vanished, left_group=left_group, **more)
    runtime = warehouse.runtime
    settings = runtime.settings.model_copy(update={"sites": {"one": site}})
    warehouse.loads += 100  # its folders have names of their own
    return replace(warehouse, runtime=Runtime(settings, runtime.clock))


@pytest.fixture
def warehouse(module_warehouse: Warehouse) -> Warehouse:
    """The module's warehouse, empty."""
    rows = module_warehouse.rows(
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('cdm', 'etl')"
        " AND tablename NOT IN ('vocabulary_release', 'alembic_version', 'access_log', 'access_link', 'access_head')"
    )
    with module_warehouse.runtime.connect() as connection:
        connection.execute(f"TRUNCATE {', '.join(row[0] for row in rows)} CASCADE")
    module_warehouse.loads += 1000
    return module_warehouse


def of(*ids: str, **more: Sequence[Mapping[str, Any] | bytes]) -> Files:
    """p1 is a patient, e1 an encounter, o1 and o21 observations of p1."""
    made: dict[str, list[Mapping[str, Any] | bytes]] = {"Patient": [], "Observation": [], "Encounter": []}
    for name in ids:
        person = f"p{name[-1]}"
        if name[0] == "p":
            made["Patient"].append(patient(name))
        elif name[0] == "e":
            made["Encounter"].append(encounter(name, person))
        else:
            made["Observation"].append(observation(name, person))
    for kind, lines in more.items():
        made.setdefault(kind, []).extend(lines)
    return {kind: lines for kind, lines in made.items() if lines}


def load(place: Warehouse, files: Files, group: str | None = "g", *, complete: bool = True) -> LandedExport:
    export = place.land(files, group=group, complete=complete)
    place.ingest(export)
    return export


def measured(place: Warehouse) -> list[str]:
    """Ids of the observations that have rows."""
    rows = place.rows("SELECT resource_id FROM row_source WHERE cdm_table = 'measurement' ORDER BY resource_id")
    return [row[0] for row in rows]


def told(place: Warehouse, export: LandedExport) -> Any:
    return place.value("SELECT vanished FROM publication WHERE export_id = %s", export.export_id)


def test_what_a_complete_export_no_longer_holds_goes_with_its_rows(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21", "e1"))
    last = load(place, of("p1", "o21"))
    assert measured(place) == ["o21"]
    assert told(place, last) == {"vanished": {"Observation": 1}}
    assert place.rows(
        "SELECT resource_id, outcome, reason FROM resource_state WHERE outcome = 'excluded' ORDER BY 1"
    ) == [("o1", "excluded", "vanished")]
    assert place.rows("SELECT resource_id FROM row_source WHERE cdm_table = 'visit_occurrence'") == [("e1",)], "no file"
    again = load(place, of("p1", "o1", "o21"))
    assert measured(place) == ["o1", "o21"], "the very same line is loaded again"
    assert told(place, again) == {}


def test_a_site_may_say_that_no_file_means_none(warehouse: Warehouse) -> None:
    place = under(warehouse, empty_when_missing=("Encounter",))
    load(place, of("p1", "o1", "e1"))
    load(place, of("p1", "o1"))
    assert place.value("SELECT count(*) FROM cdm.visit_occurrence") == 0


def test_what_is_kept_is_counted(warehouse: Warehouse) -> None:
    place = under(warehouse, "keep")
    load(place, of("p1", "o1", "o21"))
    last = load(place, of("p1", "o21"))
    assert measured(place) == ["o1", "o21"]
    assert told(place, last) == {"kept": {"Observation": 1}}


def test_deleted_after_three_exports_in_a_row(warehouse: Warehouse) -> None:
    place = under(warehouse, "delete-after 3 exports")
    load(place, of("p1", "o1", "o21"))
    without, again = ("p1", "o21"), ("p1", "o1", "o21")
    fates = [told(place, load(place, of(*ids))) for ids in (without, without, again, without, without, without)]
    waiting = {"waiting": {"Observation": 1}}
    assert fates == [waiting, waiting, {}, waiting, waiting, {"vanished": {"Observation": 1}}]
    assert measured(place) == ["o21"]


INCOMPLETE: dict[str, Files] = {
    "a line that is no JSON": of("p1", "o21", Observation=[b'{"resourceType": "Observation"']),
    "a line without an id": of("p1", "o21", Observation=[b'{"resourceType": "Observation"}']),
    "no file of the type": of("p1"),
}


@pytest.mark.parametrize("files", INCOMPLETE.values(), ids=INCOMPLETE)
def test_nothing_of_a_type_vanishes_when_its_part_is_incomplete(warehouse: Warehouse, files: Files) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21", "e1"))
    load(place, files)
    assert measured(place) == ["o1", "o21"]


def test_an_export_of_which_nobody_says_that_it_is_complete(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21"))
    load(place, of("p1", "o21"), complete=False)
    load(place, of("p1", "o21"), group=None)
    assert measured(place) == ["o1", "o21"]


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ("UPDATE export_file SET expected_count = 7", True),  # only told in the landing's own manifest
        ("UPDATE export_job SET since = now()", False),
        ("UPDATE export_job SET resource_types = '[\"Patient\"]'", False),
        ("INSERT INTO export_outcome SELECT max(export_id), 'fatal', 'error', 'timeout', '', 1 FROM export_job", False),
        ("INSERT INTO export_outcome SELECT max(export_id), 'resource', 'error', 'x', '', 1 FROM export_job", False),
        ("INSERT INTO export_outcome SELECT max(export_id), 'resource', 'warning', 'x', '', 1 FROM export_job", True),
    ],
)
def test_what_makes_an_export_incomplete(warehouse: Warehouse, change: str, gone: bool) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21"))
    export = place.land(of("p1", "o21"), group="g", complete=True)
    with place.runtime.connect() as connection:
        connection.execute(change)
        connection.commit()
    place.ingest(export)
    assert measured(place) == (["o21"] if gone else ["o1", "o21"])


def test_a_file_with_another_count_than_announced_is_incomplete(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21"))
    export = place.land(of("p1", "o21"), group="g", complete=True)
    files = tuple(replace(file, expected_count=file.lines + 1) for file in export.files)
    place.ingest(replace(export, files=files))
    assert measured(place) == ["o1", "o21"]


def test_a_rejected_line_is_there(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21"))
    load(place, of("p1", "o21", Observation=[observation("o1", status=7)]))
    assert measured(place) == ["o1", "o21"]


def test_every_group_that_held_it_must_be_without_it(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21"), "g")
    load(place, of("p1", "o1"), "h")
    load(place, of("p1", "o21"), "g")
    assert measured(place) == ["o1", "o21"]
    load(place, of("p1", "o31"), "h", complete=False)
    assert measured(place) == ["o1", "o21", "o31"]
    load(place, of("p1", "o31"), "h")
    assert measured(place) == ["o21", "o31"]


def test_a_patient_who_left_the_group_is_told_apart(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, of("p1", "p2", "o1", "o2", "o22"))
    last = load(place, of("p1", "o1", "o31"))
    assert measured(place) == ["o1", "o2", "o22", "o31"]
    assert told(place, last) == {"kept": {"Patient": 1, "Observation": 2}}
    gone = under(warehouse, left_group="delete")
    last = load(gone, of("p1", "o1", "o31"))
    assert told(gone, last) == {"left_group": {"Patient": 1, "Observation": 2}}
    assert measured(gone) == ["o1", "o31"]
    assert gone.value("SELECT count(*) FROM cdm.person") == 1


def test_a_patient_who_moved_to_another_group_is_there(warehouse: Warehouse) -> None:
    """What is in no group any more was removed, though the patient has left the group that held it."""
    place = under(warehouse)
    load(place, of("p1", "o1", "o21", "p2", "o2"), "g")
    load(place, of("p1", "o1"), "h")
    load(place, of("p2", "o2"), "g")
    assert measured(place) == ["o1", "o2"]


def test_whether_the_patient_is_there_may_be_unknown(warehouse: Warehouse) -> None:
    place = under(warehouse, left_group="delete")
    load(place, of("p1", "o1", "o21"))
    last = load(place, of("o21"))
    assert told(place, last) == {"undecided": {"Observation": 1}}
    assert measured(place) == ["o1", "o21"]


def test_a_crawl_or_a_folder_that_brought_it_later_counts(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21"))
    without = place.land(of("p1", "o21"), group="g", complete=True)
    later = place.land(of("p1", "o1"))
    place.ingest(later)
    place.ingest(without)
    assert measured(place) == ["o1", "o21"]
    load(place, of("p1", "o21"))
    assert measured(place) == ["o21"]


def many(*numbers: int) -> Files:
    return of("p1", Observation=[observation(f"o{number}1") for number in numbers])


def test_much_is_deleted_only_when_somebody_confirms_it(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, many(*range(300)))
    export = place.land(many(*range(10, 300)), group="g", complete=True)
    with pytest.raises(ConfirmationNeeded, match=r"10 of 300 Observation \(3.3%\)") as refusal:
        place.ingest(export)
    assert f"--export {export.export_id} --confirm" in refusal.value.advice
    assert len(measured(place)) == 300
    assert place.value("SELECT state FROM export_job WHERE export_id = %s", export.export_id) == "landed"
    assert place.value("SELECT count(*) FROM absent_resource") == 0
    place.ingest(export, confirmed=True)
    assert len(measured(place)) == 290
    load(place, many(*range(15, 300)))
    assert len(measured(place)) == 285, "few are deleted without asking"


def test_many_of_a_large_type_are_deleted_without_asking(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, many(*range(600)))
    load(place, many(*range(12, 600)))
    assert len(measured(place)) == 588


def test_nothing_vanishes_for_want_of_evidence(warehouse: Warehouse) -> None:
    """The home is lost: what the groups held is not known any more."""
    place = under(warehouse)
    load(place, of("p1", "o1", "o21"), "g")
    load(place, of("p1", "o21", "o31"), "h")
    for file in (place.runtime.settings.home / "seen").rglob("*.parquet"):
        file.unlink()
    load(place, of("p1", "o41"), "g")
    assert measured(place) == ["o1", "o21", "o31", "o41"]
    load(place, of("p1", "o31"), "h")
    load(place, of("p1", "o51"), "g")
    assert measured(place) == ["o1", "o21", "o31", "o51"], "of what was seen since, all is known"


def test_a_publication_that_is_published_again_changes_nothing(warehouse: Warehouse) -> None:
    place = under(warehouse)
    first = load(place, of("p1", "o1", "o21"))
    second = load(place, of("p1", "o21"))
    for export in (first, second, first):
        place.ingest(export, force=True)
        assert measured(place) == ["o21"]
    kept = under(warehouse, "keep")
    load(kept, of("p1", "o21"))
    assert measured(kept) == ["o21"], "what was deleted stays so under another policy"


def test_reference_data_follows_the_policy_for_what_left(warehouse: Warehouse) -> None:
    doctor: dict[str, Any] = {"id": "d1", "name": [{"family": "A"}]}
    place = under(warehouse)
    load(place, of("p1", "o1", Practitioner=[doctor, {**doctor, "id": "d2"}]))
    last = load(place, of("p1", "o1", Practitioner=[doctor]))
    assert told(place, last) == {"kept": {"Practitioner": 1}}
    gone = under(warehouse, left_group="delete", hydrate=True)
    load(gone, of("p1", "o1", Practitioner=[doctor]))
    assert gone.value("SELECT count(*) FROM cdm.provider") == 2, "hydrated types are exempt"
    gone = under(warehouse, left_group="delete")
    load(gone, of("p1", "o1", Practitioner=[doctor]))
    assert gone.value("SELECT count(*) FROM cdm.provider") == 1


def test_a_dead_letter_of_what_vanished_is_closed(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21"))
    load(place, of("p1", "o21", Observation=[observation("o1", status=7)]))
    assert place.value("SELECT count(*) FROM dead_letter_open") == 1
    load(place, of("p1", "o21"))
    assert measured(place) == ["o21"]
    assert place.value("SELECT count(*) FROM dead_letter_open") == 0


def test_an_unchanged_dependent_is_mapped_again(warehouse: Warehouse) -> None:
    """Full exports confirm it night by night; its medication changes all the same."""

    def medication(code: str) -> list[Mapping[str, Any]]:
        coding = {"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": code}
        return [{"id": "med", "code": {"coding": [coding]}}]

    request: dict[str, Any] = {
        "id": "m1",
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/p1"},
        "authoredOn": "2025-01-02",
        "medicationReference": {"reference": "Medication/med"},
    }
    load(warehouse, of("p1", MedicationRequest=[request], Medication=medication("314076")))
    load(warehouse, of("p1", MedicationRequest=[request], Medication=medication("314077")))
    assert warehouse.rows("SELECT drug_source_value FROM cdm.drug_exposure") == [("314077",)]
    assert warehouse.value("SELECT count(*) FROM reference WHERE state = 'stale'") == 0


# --- messages that are always there -----------------------------------------------------------------------------------


def load_with_message(place: Warehouse, files: Files, *message: str) -> LandedExport:
    """With one kind of message (weight, severity, code, site's code) in the site's error files."""
    export = place.land(files, group="g", complete=True)
    with place.runtime.connect() as connection:
        connection.execute("INSERT INTO export_outcome VALUES (%s, %s, %s, %s, %s, 3)", (export.export_id, *message))
    place.ingest(export)
    return export


def test_a_message_that_is_always_there_makes_nothing_incomplete(warehouse: Warehouse) -> None:
    place = under(warehouse, tolerated_messages=("59108", "not-found", "timeout"))
    load(place, of("p1", "o11", "o21", "o31", "o41"))
    left = of("p1", "o21", "o31", "o41")
    load_with_message(place, left, "resource", "error", "processing", "59109")
    load_with_message(place, left, "resource", "error", "unreadable", "")
    load_with_message(place, left, "fatal", "error", "timeout", "")
    load_with_message(place, left, "fatal", "fatal", "processing", "59108")
    assert measured(place) == ["o11", "o21", "o31", "o41"], "another one, or what may concern whole types"
    told_all = load_with_message(place, left, "resource", "error", "processing", "59108")
    assert measured(place) == ["o21", "o31", "o41"]
    with place.runtime.connect() as connection:
        (sentence,) = export_notes(connection, [told_all.export_id]).sentences()
    assert sentence == "Messages of the site: 3 resource (error processing 59108)."
    load_with_message(place, of("p1", "o31", "o41"), "resource", "error", "not-found", "")
    assert measured(place) == ["o31", "o41"]
    load_with_message(place, of("p1", "o41"), "fatal", "error", "forbidden", "59108")
    assert measured(place) == ["o41"], "Epic's own code says exactly which one"


def test_codes_of_tolerated_messages(tmp_path: Path) -> None:
    register_site(tmp_path, "s", {"tolerated_messages": [59108, "not-found"]})
    assert load_settings({"EPIC_OMOP_HOME": str(tmp_path)}).site("s").tolerated_messages == ("59108", "not-found")
    for wrong in ("unreadable", "Not found", ""):
        with pytest.raises(ValueError, match="neither a code of Epic's such as 59108"):
            SiteSettings(name="s", tolerated_messages=(wrong,))


# --- after an erasure -------------------------------------------------------------------------------------------------


def test_the_export_after_an_erasure_is_judged_at_once(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the group holds without the person is known, also when the erasure was interrupted in the middle."""
    place = under(warehouse)
    everything = of("p1", "o1", "o21", "o31", "p2", "o2", "o22")
    load(place, everything)
    with erasing(place.runtime, "one", ["p2"]) as work, monkeypatch.context() as patched:
        patched.setattr("pipeline.publication.members._write", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            work.run()
    with erasing(place.runtime, "one", ["p2"]) as work:
        work.run()
    last = load(place, of("p1", "o21", "o31", "p2", "o2", "o22"))  # the site exports the person all the same
    assert told(place, last) == {"vanished": {"Observation": 1}}
    last = load(place, of("p1", "o31", "p2", "o22"))
    assert told(place, last) == {"vanished": {"Observation": 1}}
    assert measured(place) == ["o31"]
    assert place.value("SELECT count(*) FROM group_export WHERE earlier_is_lost") == 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt
