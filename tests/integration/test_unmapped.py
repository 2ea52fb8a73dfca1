"""The steward's loop: what is unmapped is exported, decided, imported and mapped; what cannot be taken is refused."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UsageError
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.quality.unmapped.codes import Decisions, SourceKeys, unmapped_sources
from pipeline.quality.unmapped.domains import ElementDomains
from pipeline.quality.unmapped.exporting import Suggestion, as_csv
from pipeline.quality.unmapped.files import read_map_file
from pipeline.quality.unmapped.importing import ImportOptions, ImportReport, import_map
from pipeline.quality.unmapped.progress import site_progress
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.warehouse.local_map.rows import MapSchemas, current_rows
from pipeline.warehouse.local_map.source_to_concept_map import short_vocabulary_id
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine
from tests.integration.support import Warehouse, encounter, observation, patient, reference

DX = "https://hospital.example.org/codes/diagnoses-of-the-emergency-department"
LAB = "urn:oid:1.2.840.114350.1.13.0.1.7.2.768282"
NAUSEA, LEUKOCYTES, DAY, OFFICE = 31967, 3000905, 8512, 9202
MAPPINGS = load_mappings(MAPPINGS_FOLDER)
SCHEMAS = MapSchemas("vocab", "etl")
TEXT = "Feels  sick since the morning, after a meal in the canteen"
USAGI = (
    "sourceCode,sourceName,sourceFrequency,sourceAutoAssignedConceptIds,ADD_INFO:source_system,ADD_INFO:site,matchScore,"
    "mappingStatus,equivalence,statusSetBy,statusSetOn,conceptId,conceptName,domainId,mappingType,comment,createdBy,"
    "createdOn,assignedReviewer"
)


def condition(resource_id: str, code: dict[str, Any]) -> dict[str, Any]:
    return {"id": resource_id, "code": code, "subject": reference("Patient", "p1"), "recordedDate": "2025-01-02"}


def coded(system: str | None, code: str, display: str | None = None, **more: Any) -> dict[str, Any]:
    coding = {"system": system, "code": code, "display": display}
    return {"coding": [{name: value for name, value in coding.items() if value}], **more}


FILES: dict[str, list[dict[str, Any]]] = {
    "Patient": [patient()],
    "Condition": [
        condition("c1", coded(DX, "00123", "Nausea, unspecified", text="Feels sick")),
        condition("c2", coded(DX, "00123", "Nausea, unspecified")),
        condition("c3", coded(DX, "12E3", "Long number")),
        condition("c4", coded(DX, "3-4", "Third, of four")),
        condition("c5", {"text": TEXT}),
        condition("c6", coded(DX, "=1+1", "A formula")),
        condition("c7", coded("http://hl7.org/fhir/sid/icd-10-cm", "I10")),
    ],
    "Encounter": [encounter(**{"class": {"system": "urn:hospital:classes", "code": "5", "display": "Appointment"}})],
    "Observation": [
        observation("o1", code=coded(LAB, "LEU", "Leukocytes")),
        observation("o3", valueQuantity=None, valueCodeableConcept=coded(LAB, "LEU", "Leukocytes")),
        observation("o2", valueQuantity={"value": 1, "unit": "Tage"}),
    ],
}


@pytest.fixture(scope="module")
def loaded(module_warehouse: Warehouse) -> Warehouse:
    settings = module_warehouse.runtime.settings
    site = settings.site_or_folder("one").model_copy(update={"text_source_value_types": ("Condition",)})
    changed = settings.model_copy(update={"sites": {"one": site}})
    module_warehouse.runtime = Runtime(changed, module_warehouse.runtime.clock)
    module_warehouse.load(FILES)
    return module_warehouse


@pytest.fixture
def warehouse(loaded: Warehouse) -> Iterator[Warehouse]:
    yield loaded
    with loaded.runtime.connect() as connection:
        connection.execute("TRUNCATE etl.local_map, vocab.source_to_concept_map")


def take(warehouse: Warehouse, folder: Path, content: str | bytes, **options: Any) -> ImportReport:
    file = folder / "map.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with warehouse.runtime.connect() as connection:
        return import_map(connection, read_map_file(file), ImportOptions(**options), MAPPINGS, SCHEMAS)


def usagi(*rows: tuple[Any, ...]) -> str:
    """`rows`: code, status, target, and then, each with its default: system, mapping type, reviewer."""
    lines = [USAGI]
    for code, status, target, *more in rows:
        system, kind, reviewer = (*more, *(DX, "MAPS_TO", "ann")[len(more) :])
        lines.append(
            f'{code},"a, name",2,,{system},one,0.9,{status},EQUAL,{reviewer},1700000000000,{target},,,{kind},,ann,0,'
        )
    return "\n".join([*lines, ""])


def exported(warehouse: Warehouse, style: str, suggest: Any = None) -> list[dict[str, str]]:
    with warehouse.runtime.connect() as connection:
        decisions = Decisions.of(SourceKeys(MAPPINGS), [row.answer for row in current_rows(connection, SCHEMAS)])
        sources = [item for item in unmapped_sources(connection, "one") if decisions.state_of(item) == "open"]
    more = {"suggest": suggest} if suggest else {}
    return list(csv.DictReader(io.StringIO(as_csv(sources, style, ElementDomains(MAPPINGS), **more))))  # type: ignore[arg-type]


def reasons(report: ImportReport) -> dict[str | None, str]:
    return {refusal.code: refusal.reason for refusal in report.refusals}


def test_what_is_unmapped_keeps_what_a_person_needs(warehouse):
    rows = {row["source_code"]: row for row in exported(warehouse, "usagi")}
    assert rows.keys() == {"00123", "12E3", "3-4", "'=1+1", TEXT, "LEU", "Tage", "5"}
    assert rows["00123"] | {"tried": ""} == {
        "source_code": "00123",
        "source_name": "Nausea, unspecified",
        "source_frequency": "2",
        "auto_concept_id": "",
        "source_system": DX,
        "site": "one",
        "found_in": "Condition.code",
        "tried": "",
    }
    assert rows["00123"]["tried"] == f"{DX} 00123: unknown"
    assert rows[TEXT]["source_system"] == "text"
    kept = warehouse.rows("SELECT text, first_seen = last_seen FROM etl.unmapped_coding WHERE code = '00123'")
    assert kept == [("Feels sick", True)], "by the allow-list"
    assert (
        warehouse.value("SELECT count(*) FROM etl.unmapped_coding WHERE resource_type = 'Observation' AND text > ''")
        == 0
    )
    warehouse.load({"Condition": [condition("c8", coded(DX, "3-4", "Third, of four"))]})
    assert warehouse.value("SELECT first_seen < last_seen FROM etl.unmapped_coding WHERE code = '3-4'") is True
    plain = exported(warehouse, "plain", lambda source, domains, most: [Suggestion(NAUSEA, "Nausea", 0.5)] * (most + 1))
    assert {row["suggestion_5_id"] for row in plain} == {str(NAUSEA)}
    asked: dict[str, Any] = {}
    exported(warehouse, "plain", lambda source, domains, most: asked.update({source.code or "": domains}) or ())
    assert asked["Tage"] == {"Unit"}
    assert "Unit" not in asked["00123"]


def test_a_file_of_usagi_is_taken_and_maps(warehouse, tmp_path):
    content = usagi(
        ("00123", "APPROVED", NAUSEA),
        ("12E3", "APPROVED", 0),
        ("3-4", "IGNORED", 0),
        ("LEU", "UNCHECKED", LEUKOCYTES, LAB),
        ("Tage", "APPROVED", DAY, ""),
        (f'"{TEXT}"', "APPROVED", NAUSEA, "text", "MAPS_TO"),
        ("5", "APPROVED", OFFICE, "urn:hospital:classes"),
        ("=1+1", "UNCHECKED", 0),
    )
    report = take(warehouse, tmp_path, "\ufeff" + content)
    assert report.refusals == ()
    assert report.taken == {"approved": 4, "no map": 1, "ignored": 1, "unchecked": 1}
    assert report.empty == 1
    row = warehouse.rows(
        "SELECT site, source_system, equivalence, mapping_type, reviewer, extract(year FROM reviewed_at)::int, version,"
        " source_description, origin FROM etl.local_map WHERE source_code = '00123'"
    )
    assert row == [("one", DX, "EQUAL", "MAPS_TO", "ann", 2023, 1, "a, name", "import")]
    table = warehouse.rows(
        "SELECT source_vocabulary_id, source_code, target_concept_id FROM vocab.source_to_concept_map"
    )
    assert (short_vocabulary_id("one", DX), "00123", NAUSEA) in table
    assert take(warehouse, tmp_path, content).unchanged == 7
    warehouse.load(FILES)
    found = warehouse.rows(
        "SELECT resource_id, condition_concept_id FROM etl.row_source JOIN cdm.condition_occurrence"
        " ON row_id = condition_occurrence_id WHERE cdm_table = 'condition_occurrence' AND condition_concept_id = %s",
        NAUSEA,
    )
    assert sorted(found) == [("c1", NAUSEA), ("c2", NAUSEA), ("c5", NAUSEA)]
    assert warehouse.value("SELECT count(*) FROM cdm.measurement WHERE unit_concept_id = %s", DAY) == 1
    visits = warehouse.rows("SELECT visit_concept_id, visit_source_value FROM cdm.visit_occurrence")
    assert visits == [(OFFICE, "5")], "where a value map does not know the code"
    assert {row["source_code"] for row in exported(warehouse, "usagi")} == {"'=1+1", "LEU"}
    with warehouse.runtime.connect() as connection:
        (progress,) = site_progress(connection, SCHEMAS, MAPPINGS, "one", 2)
    counts = {count.name: count.sources for count in progress.counts}
    assert counts == {"open": 2, "no map": 1, "ignored": 1, "approved, and mapped": 4}
    # LEU is the code of one row and the value of another, which is covered.
    assert progress.covered == progress.rows - sum(count.rows for count in progress.counts) + 1 > 0
    assert len(progress.nights) == 2


def test_what_cannot_be_taken_is_refused_with_its_reason(warehouse, tmp_path):
    content = usagi(
        ("123", "APPROVED", NAUSEA),
        ("12000", "APPROVED", NAUSEA),
        ("04-Mar", "APPROVED", NAUSEA),
        ("LEV", "APPROVED", LEUKOCYTES, LAB),
        ("00123", "APPROVED", DAY),
        ("3-4", "APPROVED", 999999),
        ("=1+1", "APPROVED", NAUSEA),
        ("=1+1", "APPROVED", 0),
        ("12E3", "APPROVED", NAUSEA, DX, "MAPS_TO", "ann"),
        ("12E3", "APPROVED", LEUKOCYTES, DX, "MAPS_TO", "bob"),
        ("LEU", "APPROVED", DAY, LAB, "MAPS_TO_VALUE"),
        ("Tage", "APPROVED", NAUSEA, ""),
        ("X1", "APPROVED", NAUSEA, "urn:nobody"),
        ("3-4x", "PERHAPS", NAUSEA),
        ("3-4y", "APPROVED", "1.5"),
        ("3-4z", "APPROVED", NAUSEA, DX, "MAPS_TO_OPERATOR"),
    )
    report = take(warehouse, tmp_path, content + "only,three,cells\n")
    said = reasons(report)
    assert not report.taken
    assert "nearest is 00123 (leading zeros are lost)" in said["123"]
    assert "nearest is 12E3 (it was taken for a number)" in said["12000"]
    assert "nearest is 3-4 (it was taken for a date)" in said["04-Mar"]
    assert "nearest is LEU (it is the most alike)" in said["LEV"]
    assert "of domain Unit; where the code stands, only Condition," in said["00123"]
    assert said["3-4"] == "concept 999999 is not in the active vocabulary"
    assert "as having no map, and with a concept" in said["=1+1"]
    assert "conflicting approvals" in said["12E3"]
    assert f"ann: {NAUSEA}" in said["12E3"]
    assert "no concept that they belong to" in said["LEU"]
    assert "only Unit can be used" in said["Tage"]
    assert "no resource has had a code of urn:nobody" in said["X1"]
    assert "'PERHAPS'" in said["3-4x"]
    assert "no whole number" in said["3-4y"]
    assert "MAPS_TO_OPERATOR" in said["3-4z"]
    assert "3 columns, the header has 19" in said[None]
    assert len(report.refusals) == 17
    assert warehouse.value("SELECT count(*) FROM etl.local_map") == 0


def test_another_approval_is_refused_until_it_is_asked_for(warehouse, tmp_path):
    take(warehouse, tmp_path, usagi(("00123", "APPROVED", NAUSEA)))
    other = usagi(("00123", "APPROVED", LEUKOCYTES, DX, "MAPS_TO", "bob"))
    assert reasons(take(warehouse, tmp_path, other)) == {
        "00123": f"it is approved already by ann on 2023-11-14: {NAUSEA}; --replace takes this instead"
    }
    assert take(warehouse, tmp_path, other, replace=True, dry_run=True).taken == {"approved": 1}
    assert take(warehouse, tmp_path, other, replace=True).taken == {"approved": 1}
    assert warehouse.rows(
        "SELECT version, target_concept_id, reviewer, valid_until IS NULL FROM etl.local_map ORDER BY version"
    ) == [(1, NAUSEA, "ann", False), (2, LEUKOCYTES, "bob", True)]
    assert take(warehouse, tmp_path, usagi(("00123", "APPROVED", NAUSEA)), for_all_sites=True).taken == {"approved": 1}


def test_a_site_that_nothing_is_known_of_is_refused(warehouse, tmp_path):
    content = usagi(("00123", "APPROVED", NAUSEA)).replace(",one,", ",onne,")
    assert ",onne," in content
    report = take(warehouse, tmp_path, content, sites=frozenset(("one", "two")))
    assert [item.reason for item in report.refusals] == [
        "there is no site 'onne'. Did you mean 'one'? Known sites: one, two"
    ]
    assert take(warehouse, tmp_path, content, sites=frozenset(("one", "two")), site="two").taken == {"approved": 1}


PLAIN = "source_system;source_code;target_concept_id\r\n"
STCM = "source_code{0}source_concept_id{0}source_vocabulary_id{0}source_code_description{0}target_concept_id{0}invalid_reason"


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (f"{PLAIN}{DX};00123;{NAUSEA}\r\n{DX};3-4;\r\n", {}),
        (f'{STCM.format(",")}\n"00123",0,"{DX}","a ""name""",{NAUSEA},\n12E3,0,{DX},,0,\n3-4,0,{DX},,{NAUSEA},D\n', {}),
        (f"{STCM.format(chr(9))}\n00123\t0\tHospital\t\t{NAUSEA}\t\n".encode("utf-16"), {"system": DX}),
        (f"sourceCode;mappingStatus;conceptId\n00123;APPROVED;{NAUSEA}\n", {}),
    ],
    ids=["plain", "stcm", "stcm of Excel", "usagi without a system"],
)
def test_other_files_are_read(warehouse, tmp_path, content, options):
    report = take(warehouse, tmp_path, content, site="one", **options)
    assert report.refusals == ()
    assert report.taken == {"approved": 1}
    assert warehouse.rows("SELECT site, source_system, source_code, target_concept_id FROM etl.local_map") == [
        ("one", DX, "00123", NAUSEA)
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"a,b\n1,2\n", b"\xff\xfe\xff", b"\x00\x01", "Z\u00fcrich".encode("latin-1"), b"source_code,source_code\n",
     b'sourceCode,mappingStatus,conceptId,conceptId\n', b'sourceCode,mappingStatus,conceptId\n"' + b"x" * 200_000],
)  # fmt: skip
def test_what_is_no_such_file_is_refused(tmp_path, content):
    file = tmp_path / "map.csv"
    file.write_bytes(content)
    with pytest.raises(UsageError):
        read_map_file(file)


def test_the_commands(warehouse, tmp_path):
    terminal = CommandLine(warehouse.runtime.settings.home, warehouse.runtime.url, {"COLUMNS": "80"})
    file = tmp_path / "unmapped.csv"
    done = terminal.run("unmapped", "export", "--site", "one", "--format", "plain", "--output", file)
    assert "codes of" in done.err
    rows = list(csv.DictReader(file.read_text().splitlines()))
    for row in rows:
        row["target_concept_id"] = {"12E3": str(NAUSEA), "LEU": "0", "'=1+1": str(NAUSEA)}.get(row["source_code"], "")
        row["reviewer"] = "ann"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert "Taken: 2 approved, 1 no map." in terminal.run("unmapped", "import", file).out
    spoilt = tmp_path / "spoilt.csv"
    spoilt.write_text(f"{PLAIN}{DX};123;{NAUSEA}\n")
    assert "00123" in terminal.run("unmapped", "import", spoilt, "--site", "one", code=1).out
    assert "contradict" in terminal.run("unmapped", "import", spoilt, "--site", "one", "--all-sites", code=2).err
    assert "cannot be read" in terminal.run("unmapped", "import", tmp_path / "nowhere.csv", code=2).err
    assert "no format" in terminal.run("unmapped", "export", "--format", "xlsx", code=2).err
    said = terminal.run("unmapped", "status").out
    assert "approved, wait for a remap" in said
    assert max(map(len, said.splitlines())) <= 80
    assert '"no map"' in terminal.run("unmapped", "status", "--json").out
