"""What a steward looks at: suggestions from the loaded vocabulary, coverage by night, and how a row came about."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import psycopg
import pytest

from pipeline.core.errors import UsageError, VocabularyError
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.orchestration.asset_checks import coverage_check
from pipeline.quality.coverage import coverage_falls, coverage_nights, last_night
from pipeline.quality.unmapped.codes import unmapped_sources
from pipeline.quality.unmapped.domains import ElementDomains
from pipeline.quality.unmapped.exporting import as_csv
from pipeline.quality.unmapped.suggestions import Suggestions
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.warehouse.vocabulary.name_index import NameIndex, ensure_name_index
from tests.command_line import CommandLine
from tests.integration.support import Warehouse, observation, patient, reference

ICD = "http://hl7.org/fhir/sid/icd-10-cm"
OWN = "urn:oid:1.2.840.114350.1.13.0.1.7.2.768282"
NAUSEA, LEUKOCYTES = 31967, 3000905
NAMES = {"cdm_schema": "cdm", "vocab_schema": "vocab", "etl_schema": "etl"}


def condition(number: int, code: str, system: str = ICD, display: str | None = None) -> dict[str, Any]:
    coding = {"system": system, "code": code, **({"display": display} if display else {})}
    return {
        "id": f"c{number}",
        "code": {"coding": [coding]},
        "subject": reference("Patient", "p1"),
        "recordedDate": "2025-01-02",
    }


@pytest.fixture(scope="module")
def loaded(module_warehouse: Warehouse) -> Warehouse:
    """Two nights: on the second one most codes of diagnoses are unknown."""
    laboratory = {"coding": [{"system": OWN, "code": "LEU", "display": "Leukocites in blod"}]}
    first = {
        "Patient": [patient()],
        "Condition": [condition(number, "I10") for number in range(60)],
        "Observation": [
            observation("o1", code=laboratory, valueQuantity={"value": 1, "unit": "Fuder"}),
            observation("o2", valueQuantity={"value": 1, "code": "kg", "system": "http://unitsofmeasure.org"}),
        ],
    }
    second = {"Condition": [condition(number, "X-1", OWN, "Nausea") for number in range(60, 80)]}
    second["Condition"] += [condition(number, "I10" if number < 100 else "I10.99Z") for number in range(80, 140)]
    module_warehouse.load(first)
    module_warehouse.load(second)
    return module_warehouse


@pytest.fixture(scope="module")
def index(loaded: Warehouse) -> NameIndex:
    return ensure_name_index(loaded.runtime.url, **NAMES)


def test_concepts_are_suggested_by_equal_and_by_similar_names(loaded: Warehouse, index: NameIndex) -> None:
    assert index.note is None
    with loaded.runtime.connect() as connection:
        suggest = Suggestions(connection, index)
        equal = suggest.of_text("  NAUSEA ", None, 5)
        assert (equal[0].concept_id, equal[0].score) == (NAUSEA, 1.0)
        misspelt = [item.concept_id for item in suggest.of_text("Leukocites in blod", None, 10)]
        assert LEUKOCYTES in misspelt[:3]
        assert {item.domain_id for item in suggest.of_text("nausea and blood", frozenset(("Condition",)), 50)} == {
            "Condition"
        }
        scores = [item.score for item in suggest.of_text("nausea with vomiting", None, 10)]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score <= 1 for score in scores)
        for nothing in ("", " \t", "''&|!", "\\", "zzzzqqqq", "(" * 500, "% _ : * <->"):
            assert len(suggest.of_text(nothing, None, 5)) <= 5
        assert suggest.known_domains(["condition"]) == {"Condition"}
        with pytest.raises(UsageError, match="no domain Foo"):
            suggest.known_domains(["Foo"])


def test_names_are_prepared_once_a_release_by_who_may(loaded: Warehouse, index: NameIndex) -> None:
    made: list[str] = []
    ensure_name_index(loaded.runtime.url, **NAMES, before=lambda: made.append("again"))
    assert made == []
    with loaded.runtime.connect() as connection:
        connection.execute("COMMENT ON TABLE vocab.concept_name_search IS 'another release'")
    ensure_name_index(loaded.runtime.url, **NAMES, before=lambda: made.append("again"))
    assert made == ["again"]
    with loaded.runtime.connect() as connection:
        connection.execute("COMMENT ON TABLE vocab.concept_name_search IS 'another release'")
        connection.execute("CREATE ROLE reads_names; GRANT USAGE ON SCHEMA vocab, etl TO reads_names")
        connection.execute("GRANT SELECT ON etl.vocabulary_release TO reads_names")
    try:
        url = psycopg.conninfo.make_conninfo(loaded.runtime.url, options="-c role=reads_names")
        with pytest.raises(VocabularyError, match="may not do it"):
            ensure_name_index(url, **NAMES)
    finally:
        with loaded.runtime.connect() as connection:
            connection.execute("DROP OWNED BY reads_names; DROP ROLE reads_names")
        ensure_name_index(loaded.runtime.url, **NAMES)


def test_a_server_without_trigrams_finds_equal_names_and_words(loaded: Warehouse, index: NameIndex) -> None:
    without = NameIndex("vocab", index.release, None)
    assert "pg_trgm" in (without.note or "")
    with loaded.runtime.connect() as connection:
        suggest = Suggestions(connection, without)
        assert suggest.of_text("nausea", None, 5)[0].concept_id == NAUSEA
        assert LEUKOCYTES in [item.concept_id for item in suggest.of_text("leukocytes, blood", None, 10)]


def test_the_plain_list_has_suggestions(loaded: Warehouse, index: NameIndex) -> None:
    mappings = load_mappings(MAPPINGS_FOLDER)
    with loaded.runtime.connect() as connection:
        content = as_csv(
            unmapped_sources(connection, "one"), "plain", ElementDomains(mappings), Suggestions(connection, index)
        )
    rows = {row["source_code"]: row for row in csv.DictReader(io.StringIO(content))}
    assert rows["X-1"]["suggestion_1_id"] == str(NAUSEA)
    assert rows["X-1"]["suggestion_1_score"] == "1.00"
    assert str(LEUKOCYTES) in [rows["LEU"][f"suggestion_{number}_id"] for number in range(1, 6)]


def test_coverage_is_counted_by_night_and_a_fall_warns(loaded: Warehouse) -> None:
    counted = loaded.rows(
        "SELECT cdm_table, resource_type || '.' || element, system, rows, mapped FROM coverage"
        " WHERE export_id = (SELECT min(export_id) FROM coverage) ORDER BY 1, 2, 3"
    )
    assert ("condition_occurrence", "Condition.code", ICD, 60, 60) in counted
    assert ("measurement", "Observation.unit", "http://unitsofmeasure.org", 1, 1) in counted
    assert ("measurement", "Observation.unit", "", 1, 0) in counted
    hashes = loaded.rows("SELECT DISTINCT vocabulary_hash FROM coverage")
    assert hashes == loaded.rows("SELECT content_hash FROM vocabulary_release WHERE is_current")
    with loaded.runtime.connect() as connection:
        nights = coverage_nights(connection, "one", 5)
        shares = last_night(connection, "one")
        falls = coverage_falls(connection, "one")
    assert (nights[0].rows, nights[0].mapped) == (80, 20)
    assert {(item.system, item.rows, item.mapped) for item in shares} == {(ICD, 60, 20), (OWN, 20, 0)}
    assert [(fall.last.system, fall.before) for fall in falls] == [(ICD, 1.0)]
    checked = coverage_check(loaded.runtime.settings.site_or_folder("one"))(runtime=loaded.runtime)
    assert not checked.passed
    assert checked.severity.value == "WARN"


def test_an_export_that_is_published_again_is_counted_once(loaded: Warehouse) -> None:
    keys = loaded.rows("SELECT export_id, cdm_table, resource_type, element, system FROM coverage")
    assert len(keys) == len(set(keys))


def explained(warehouse: Warehouse, *arguments: str) -> list[dict[str, Any]]:
    settings = warehouse.runtime.settings
    line = CommandLine(settings.home, warehouse.runtime.url)
    return json.loads(line.run("explain", *arguments, "--json").out)


def test_a_row_and_a_resource_are_explained(loaded: Warehouse) -> None:
    row_id = loaded.value(
        "SELECT row_id FROM row_source WHERE resource_id = 'c3' AND cdm_table = 'condition_occurrence'"
    )
    before = loaded.value("SELECT count(*) FROM access_log")
    (by_row,) = explained(loaded, "condition_occurrence", str(row_id))
    (by_id,) = explained(loaded, "Condition/c3")
    assert by_row == by_id
    assert loaded.value("SELECT count(*) FROM access_log") == before + 2
    assert by_id["landed"]["line"] == 4
    (element,) = by_id["elements"]
    (coding,) = element["codings"]
    assert (element["path"], element["purpose"]) == ("Condition.code", "condition")
    assert (coding["code"], coding["counts"], coding["answered_by"]) == ("I10", True, "vocabulary")
    (row,) = by_id["rows"]
    assert row["columns"]["condition_concept_id"] == coding["standard"][0]["concept_id"]
    assert "condition_occurrence" in element["routing"]


def test_an_unknown_code_and_unit_are_explained(loaded: Warehouse) -> None:
    (found,) = explained(loaded, "Observation/o1", "--site", "one")
    by_path = {element["path"]: element["codings"][0] for element in found["elements"]}
    code, unit = by_path["Observation.code"], by_path["Observation.valueQuantity"]
    assert (code["standard"], code["answered_by"]) == ([], "nothing")
    assert "unknown" in code["tried"]
    assert (unit["code"], unit["standard"]) == ("Fuder", [])


@pytest.mark.parametrize(
    "arguments",
    [("measurement", "999999999"), ("vocabulary", "1"), ("Observation/none",), ("measurement",), ("/", "1")],
)
def test_what_is_not_there_is_said(loaded: Warehouse, arguments: tuple[str, ...]) -> None:
    line = CommandLine(loaded.runtime.settings.home, loaded.runtime.url)
    finished = line.run("explain", *arguments, code=2)
    assert "Traceback" not in finished.err
