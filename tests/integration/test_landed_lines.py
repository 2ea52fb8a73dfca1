"""Landed lines that are not where they were: found elsewhere, or counted, and no night stops for them."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings
from pipeline.load.corrections import forget
from pipeline.load.landed_lines import missing_lines
from tests.integration.support import Warehouse, observation, patient, reference

Lose = Callable[[Path], object]


def _damage(folder: Path) -> None:
    for file in folder.glob("files/*.zst"):
        content = file.read_bytes()
        file.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])


def _other_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b'{"site":')


#: What happens to an old folder of landing.
LOSSES: dict[str, Lose] = {
    "folder removed": shutil.rmtree,
    "files removed": lambda folder: shutil.rmtree(folder / "files"),
    "files damaged": _damage,
    "manifest damaged": _other_manifest,
}


def request(medication: str = "med") -> dict[str, Any]:
    return {
        "id": "m1",
        "status": "active",
        "intent": "order",
        "subject": reference("Patient", "p1"),
        "authoredOn": "2025-01-02",
        "medicationReference": reference("Medication", medication),
    }


def medication(code: str) -> dict[str, Any]:
    return {"id": "med", "code": {"coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": code}]}}


def document() -> dict[str, Any]:
    return {
        "id": "d1",
        "status": "current",
        "type": {"coding": [{"system": "http://loinc.org", "code": "11506-3"}]},
        "subject": reference("Patient", "p1"),
        "date": "2025-01-02T10:00:00Z",
        "content": [{"attachment": {"contentType": "text/plain", "url": "Binary/b1"}}],
    }


def binary() -> dict[str, Any]:
    return {"id": "b1", "contentType": "text/plain", "data": base64.b64encode(b"The text.").decode()}


def landing(place: Warehouse) -> Path:
    return place.runtime.settings.landing / "one"


def drugs(place: Warehouse) -> list[Any]:
    return [row[0] for row in place.rows("SELECT drug_source_value FROM cdm.drug_exposure")]


def missing(place: Warehouse) -> int:
    with place.runtime.connect() as connection:
        return missing_lines(connection, "one")


@pytest.mark.parametrize("name", LOSSES)
def test_a_line_is_read_from_the_newest_export_that_holds_it(warehouse: Warehouse, name: str) -> None:
    first = {"Patient": [patient()], "MedicationRequest": [request()], "Medication": [medication("314076")]}
    warehouse.load(first)
    warehouse.load({"Patient": [patient(gender="male")], **{kind: first[kind] for kind in first if kind != "Patient"}})
    # Files that are equal are one on disk: what damages one damages both, unless the second is a copy.
    for file in (landing(warehouse) / "2" / "files").glob("*.zst"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    LOSSES[name](landing(warehouse) / "1")
    reports = warehouse.load({"Medication": [medication("314077")]})
    assert drugs(warehouse) == ["314077"]
    assert missing(warehouse) == 0
    assert not any(report.warnings for report in reports)


@pytest.mark.parametrize("name", LOSSES)
def test_a_line_that_no_export_holds_is_counted_until_it_comes_again(warehouse: Warehouse, name: str) -> None:
    first = {"Patient": [patient()], "MedicationRequest": [request()], "Medication": [medication("314076")]}
    warehouse.load(first)
    LOSSES[name](landing(warehouse) / "1")
    for code in ("314077", "314076", "314077"):  # night after night
        (report, *others) = warehouse.load({"Medication": [medication(code)]})
        assert not others
        (warning,) = report.warnings
        assert warning.startswith("1 resource depends on what has changed, and no landed export holds their lines")
        assert missing(warehouse) == 1
    assert drugs(warehouse) == ["314076"]
    warehouse.load({**first, "Medication": [medication("314077")]})
    assert drugs(warehouse) == ["314077"]
    assert missing(warehouse) == 0


def test_what_only_a_forgotten_export_holds_follows_what_it_depends_on(warehouse: Warehouse) -> None:
    """Its rows stay, so its line is still what they are made from, although nothing is unchanged against it."""
    warehouse.load({"Patient": [patient()], "MedicationRequest": [request()], "Medication": [medication("314076")]})
    forget(warehouse.runtime, "one", 1)
    warehouse.load({"Patient": [patient()], "Medication": [medication("314077")]})
    assert drugs(warehouse) == ["314077"]
    assert missing(warehouse) == 0


def test_the_text_of_a_document_whose_binary_lay_in_a_removed_folder(warehouse: Warehouse) -> None:
    def texts() -> list[Any]:
        return [row[0] for row in warehouse.rows("SELECT note_text FROM cdm.note")]

    settings = warehouse.runtime.settings
    site = SiteSettings(name="one", mapping=MappingOptions(notes="on"))
    warehouse.runtime = replace(warehouse.runtime, settings=settings.model_copy(update={"sites": {"one": site}}))
    warehouse.load({"Patient": [patient()], "Binary": [binary()], "DocumentReference": [document()]})
    assert texts() == ["The text."]
    shutil.rmtree(landing(warehouse) / "1")
    warehouse.load({"Patient": [patient()], "DocumentReference": [{**document(), "date": "2025-01-03T10:00:00Z"}]})
    assert texts() == [], "a document without a text is excluded, and counted"
    assert missing(warehouse) == 1
    warehouse.load({"Binary": [binary()]})
    assert texts() == ["The text."]
    warehouse.load({"DocumentReference": [{**document(), "date": "2025-01-04T10:00:00Z"}]})
    assert texts() == ["The text."]


def test_what_others_found_in_a_note_goes_with_it(warehouse: Warehouse) -> None:
    """note_nlp is filled by others: its rows stay while the note has its id, also mapped again, and go when it goes."""

    def found() -> list[Any]:
        return [row[0] for row in warehouse.rows("SELECT note_nlp_id FROM cdm.note_nlp ORDER BY 1")]

    settings = warehouse.runtime.settings
    site = SiteSettings(name="one", mapping=MappingOptions(notes="on"))
    warehouse.runtime = replace(warehouse.runtime, settings=settings.model_copy(update={"sites": {"one": site}}))
    notes = [{**document(), "id": name} for name in ("d1", "d2", "d3")]
    warehouse.load({"Patient": [patient()], "Binary": [binary()], "DocumentReference": notes})
    warehouse.rows(
        "INSERT INTO cdm.note_nlp (note_nlp_id, note_id, lexical_variant, nlp_date)"
        " SELECT row_number() OVER (ORDER BY resource_id), row_id, 'x', now()"
        " FROM row_source WHERE cdm_table = 'note' RETURNING 1"
    )
    changed = [{**notes[0], "date": "2025-01-03T10:00:00Z"}, {**notes[1], "status": "entered-in-error"}]
    warehouse.load({"DocumentReference": changed})
    assert found() == [1, 3]
    warehouse.load({"DocumentReference": [{**note, "status": "entered-in-error"} for note in notes]})
    assert found() == []


def test_a_long_dead_letter_whose_line_is_gone_stops_nothing(warehouse: Warehouse) -> None:
    """Its line is too long for the database. The rest of what waited is loaded, and it again when it comes again."""
    long = observation("o1", note=[{"text": "x" * 17_000_000}], person="p2")
    warehouse.load({"Observation": [long, observation("o2", person="p2")]})
    assert warehouse.value("SELECT count(*) FROM dead_letter_open") == 2
    shutil.rmtree(landing(warehouse) / "1")
    warehouse.load({"Patient": [patient("p2")]})
    assert warehouse.value("SELECT count(*) FROM cdm.measurement") == 1
