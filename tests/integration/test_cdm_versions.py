"""OMOP CDM 5.5 beside 5.4: a fresh database of either, an upgrade in place, and the way back to a fresh 5.4."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from omop_schema.cdm import CDM_TABLES, VOCABULARY_TABLES, fields, tables_of
from omop_schema.versions import CdmVersion
from pipeline.core.cdm_source import CdmSource
from pipeline.core.clock import ManualClock
from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import MAPPINGS_FOLDER, Settings
from pipeline.lakehouse.layout import lake_tables
from pipeline.lakehouse.snapshot import SnapshotOptions, publish_snapshot
from pipeline.lakehouse.store import lakehouse_folder
from pipeline.load.landed_exports import landed_export
from pipeline.load.load import load as load_export
from pipeline.load.remap import remap
from pipeline.quality.deep.model import DeepRequest
from pipeline.quality.deep.run import verify_deep
from pipeline.quality.settings_notes import instance_notes, settings_notes
from pipeline.warehouse.cdm_version import database_version, version_concept
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import ensure_schemas, install_schemas, schema_names, upgrade_schemas
from pipeline.warehouse.vocabulary import compile_index, ignored_files, load_vocabulary
from tests.command_line import CommandLine
from tests.databases import Prepared, fresh_database
from tests.integration.support import START, Warehouse, encounter, observation, patient, reference
from tests.warehouse_content import Content, differences, warehouse_content

DEMO = MAPPINGS_FOLDER / "demo_vocabulary"
SNOMED, LOINC, UCUM = "http://snomed.info/sct", "http://loinc.org", "http://unitsofmeasure.org"


def coding(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


#: A code of which the demonstration vocabulary has a concept that is not Standard, and what it maps to.
CODED = coding("http://hl7.org/fhir/sid/icd-10-cm", "E11.9")
(ICD,) = CODED["coding"]


def answered(number: str, **answer: Any) -> dict[str, Any]:
    return {
        "id": number,
        "status": "completed",
        "subject": reference("Patient", "p1"),
        "authored": "2025-01-02T15:30:00Z",
        "item": [{"linkId": "1", "answer": [answer]}],
    }


def of_specimen(number: str, specimen: str, encounter_id: str | None = "e1", **more: Any) -> dict[str, Any]:
    visit = {"encounter": reference("Encounter", encounter_id)} if encounter_id else {}
    return observation(number, specimen=reference("Specimen", specimen), **visit, **more)


def specimen(number: str, person: str = "p1") -> dict[str, Any]:
    return {
        "id": number,
        "status": "available",
        "subject": reference("Patient", person),
        "type": coding(SNOMED, "119297000"),
        "collection": {"collectedDateTime": "2025-01-02T15:10:00Z"},
    }


def social(number: str, **value: Any) -> dict[str, Any]:
    """An observation, whatever its code."""
    return {
        "id": number,
        "status": "final",
        "category": [{"coding": [{"code": "social-history"}]}],
        "code": {"coding": [{"system": "urn:local", "code": number}]},
        "subject": reference("Patient", "p1"),
        "effectiveDateTime": "2025-01-02T15:30:00Z",
        **value,
    }


def nights() -> list[dict[str, Any]]:
    """The second night moves, adds and takes away what specimens follow from."""
    first = {
        "Patient": [patient(), patient("p2")],
        "Encounter": [encounter(), encounter("e2"), encounter("part", partOf=reference("Encounter", "e1"))],
        "Condition": [
            {
                "id": "c1",
                "subject": reference("Patient", "p1"),
                "code": CODED,
                "encounter": reference("Encounter", "late"),  # its only date: a replay follows when that comes
            },
            {
                "id": "history",
                "subject": reference("Patient", "p1"),
                "code": CODED,
                "recordedDate": "2025-01-02",
                "category": [coding("http://terminology.hl7.org/CodeSystem/condition-category", "medical-history")],
            },
        ],
        "QuestionnaireResponse": [
            answered("answer-date", valueDate="2024-05-06"),
            answered("answer-code", valueCoding=ICD),
        ],
        "Specimen": [specimen(name) for name in ("s1", "s2", "s3", "s4", "s5", "s6")],
        "Observation": [
            of_specimen("r1", "s1"),
            of_specimen("r2", "s1", None),
            of_specimen("r3", "s2", "part"),
            of_specimen("r4", "s3"),
            of_specimen("r5", "s3", "e2"),
            of_specimen("r6", "s4", "e2"),
            {**of_specimen("r7", "s5"), "subject": reference("Patient", "p2")},
            of_specimen("r8", "s6", "late"),
            of_specimen("coded", "s1", valueQuantity=None, valueCodeableConcept=CODED),
            social("number", valueQuantity={"value": 3, "unit": "mg/dL", "system": UCUM, "code": "mg/dL"}),
            social("odd", valueCodeableConcept=coding("urn:local", "no concept of it")),
            social("day", valueDateTime="2024-02-29"),
            social("time", valueDateTime="2024-03-01T03:00:00Z"),
            social("month", valueDateTime="2024-02"),
            social("text", valueString="words"),
            social("part", component=[{"code": coding("urn:local", "p"), "valueDateTime": "2024-05-07"}]),
        ],
    }
    second = {
        "Encounter": [encounter("late")],
        "Observation": [of_specimen("r6", "s4"), of_specimen("r5", "s3")],
    }
    return [_without_none(first), second]


def _without_none(files: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [{key: value for key, value in item.items() if value is not None} for item in resources]
        for name, resources in files.items()
    }


@dataclass(frozen=True)
class World:
    """The same exports in four databases."""

    #: 5.4, then 5.5 in place
    upgraded: Warehouse
    before: Content
    notes: list[str]
    #: 5.5 from the start
    fresh: Warehouse
    #: 5.4 once more, from the landing of the first
    back: Content


def of_version(warehouse: Warehouse, version: str, url: str | None = None, **more: Any) -> Warehouse:
    settings = warehouse.runtime.settings
    update = {"cdm_version": CdmVersion(version), "database_url": url or settings.database_url, **more}
    return replace(warehouse, runtime=Runtime(settings.model_copy(update=update), warehouse.runtime.clock))


def content(warehouse: Warehouse) -> Content:
    with warehouse.runtime.connect() as connection:
        return warehouse_content(connection)


@contextmanager
def fresh_5_5(server_url: str, folder: Path) -> Iterator[Warehouse]:
    with fresh_database(server_url) as url:
        settings = Settings(home=folder / "home", database_url=url, workers=1, cdm_version=CdmVersion.V5_5)
        install_schemas(url, **schema_names(settings))
        release = load_vocabulary(url, DEMO, vocab_schema="vocab", etl_schema="etl")
        compile_index(url, release, vocab_schema="vocab", home=settings.home)
        yield Warehouse(Runtime(settings, ManualClock(START)), folder)


@pytest.fixture(scope="module")
def world(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folders = [tmp_path_factory.mktemp(name) for name in ("upgraded", "fresh", "back")]
    with (
        demo_warehouse.copy(folders[0] / "home") as url,
        fresh_5_5(demo_warehouse.server_url, folders[1]) as fresh,
        demo_warehouse.copy() as empty_url,
    ):
        settings = Settings(home=folders[0] / "home", database_url=url, workers=1)
        old = Warehouse(Runtime(settings, ManualClock(START)), folders[0])
        for night in nights():
            old.load(night)
            fresh.load(night)
        before = content(old)
        new = of_version(old, "5.5")
        with pytest.raises(ConfigurationError, match=r"holds the OMOP CDM 5\.4 .* is 5\.5\. `epic-omop db upgrade`"):
            new.rows("SELECT 1")
        names = schema_names(new.runtime.settings)
        report = upgrade_schemas(url, **names)
        assert (report.before, report.after, report.columns, report.installed.tables) == ("5.4", "5.5", 7, 3)
        assert (upgrade_schemas(url, **names).columns, upgrade_schemas(url, **names).installed.changed) == (0, False)
        ensure_schemas(url, **names)
        with new.runtime.connect() as connection:
            notes = list(settings_notes(new.runtime, connection))
        remap(new.runtime, new.runtime.settings.site_or_folder("one"))
        new.assert_whole()
        # Settings of 5.4, the same home with its landing, and a database that is new.
        back = of_version(new, "5.4", empty_url)
        for (number,) in new.rows("SELECT export_id FROM export_job WHERE kind = 'folder' ORDER BY 1"):
            export = landed_export(back.runtime, "one", number)
            load_export(back.runtime, back.runtime.settings.site_or_folder("one"), export)
        yield World(new, before, notes, fresh, content(back))


def test_a_change_says_what_to_run_and_the_rows_become_those_of_a_fresh_5_5(world: World) -> None:
    (note,) = world.notes
    assert "are under old settings" in note
    assert "`epic-omop remap --site one`" in note
    assert differences(content(world.upgraded), content(world.fresh)) == []
    with world.upgraded.runtime.connect() as connection:
        assert list(settings_notes(world.upgraded.runtime, connection)) == []


def test_back_to_a_fresh_5_4_from_the_same_exports(world: World) -> None:
    assert differences(world.back, world.before) == []


def test_the_setting_back_at_5_4_is_refused_with_the_way_back(world: World) -> None:
    old = of_version(world.upgraded, "5.4")
    with pytest.raises(ConfigurationError) as refused:
        old.rows("SELECT 1")
    assert "holds the OMOP CDM 5.5 (schema cdm), and EPIC_OMOP_CDM_VERSION is 5.4" in refused.value.message
    for words in ("EPIC_OMOP_CDM_VERSION=5.5", "fresh database", "epic-omop db init", "--export NUMBER"):
        assert words in refused.value.advice
    names = schema_names(old.runtime.settings)
    for install in (install_schemas, ensure_schemas, upgrade_schemas):
        with pytest.raises(ConfigurationError, match="does not go back"):
            install(old.runtime.url, **names)


@pytest.mark.parametrize("which", ["upgraded", "fresh"])
def test_the_tables_are_those_of_5_5(world: World, which: str) -> None:
    warehouse: Warehouse = getattr(world, which)
    found = warehouse.rows(
        "SELECT table_schema, table_name, column_name, is_nullable = 'NO' FROM information_schema.columns"
        " WHERE table_schema IN ('cdm', 'vocab')"
    )
    expected = {
        ("vocab" if table in VOCABULARY_TABLES else "cdm", table, field.name, field.required or field.is_primary_key)
        for table in tables_of(CdmVersion.V5_5)
        for field in fields(table, CdmVersion.V5_5)
    }
    assert set(found) == expected
    assert warehouse.rows(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'cdm.specimen'::regclass AND contype = 'f' ORDER BY 1"
    ) == [(f"fpk_specimen_{name}",) for name in ("person_id", "visit_detail_id", "visit_occurrence_id")]


def values(warehouse: Warehouse, table: str, columns: str) -> dict[str, tuple[Any, ...]]:
    """Resource id → its row's columns."""
    rows = warehouse.rows(
        f"SELECT resource_id, {columns} FROM cdm.{table} AS row"
        f" JOIN row_source AS source ON source.cdm_table = '{table}' AND source.row_id = row.{table}_id"
    )
    return {name: tuple(found) for name, *found in rows}


@pytest.mark.parametrize("which", ["upgraded", "fresh"])
def test_values_and_their_source_concepts(world: World, which: str) -> None:
    warehouse: Warehouse = getattr(world, which)
    columns = "value_as_date, value_as_string, value_as_concept_id, value_as_source_concept_id, unit_source_concept_id"
    found = values(warehouse, "observation", columns)
    source = concept(warehouse, "ICD10CM", "E11.9")
    names = ("number", "odd", "day", "time", "month", "text", "part", "answer-date", "answer-code", "history")
    target = warehouse.value(
        "SELECT concept_id_2 FROM concept_relationship WHERE concept_id_1 = %s AND relationship_id = 'Maps to'", source
    )
    assert {name: found[name] for name in names} == {
        "number": (None, None, None, None, concept(warehouse, "UCUM", "mg/dL")),
        "odd": (None, None, 0, 0, None),
        "day": (date(2024, 2, 29), "2024-02-29", None, None, None),
        "time": (date(2024, 3, 1), "2024-03-01T03:00:00Z", None, None, None),
        "month": (None, "2024-02", None, None, None),
        "text": (None, "words", None, None, None),
        "part": (date(2024, 5, 7), "2024-05-07", None, None, None),
        "answer-date": (date(2024, 5, 6), "2024-05-06", None, None, None),
        "answer-code": (None, None, target, source, None),
        "history": (None, None, target, source, None),
    }
    measured = values(warehouse, "measurement", "value_as_concept_id, value_as_source_concept_id, value_source_value")
    assert measured["coded"] == (target, source, "E11.9")
    assert measured["r1"] == (None, None, "1.1")


def concept(warehouse: Warehouse, vocabulary: str, code: str) -> int:
    query = "SELECT concept_id FROM concept WHERE vocabulary_id = %s AND concept_code = %s"
    return int(warehouse.value(query, vocabulary, code))


@pytest.mark.parametrize("which", ["upgraded", "fresh"])
def test_specimens_follow_their_results(world: World, which: str) -> None:
    warehouse: Warehouse = getattr(world, which)
    visits = {
        row_id: name
        for name, row_id in warehouse.rows(
            "SELECT resource_id, row_id FROM row_source WHERE cdm_table IN ('visit_occurrence', 'visit_detail')"
            " AND resource_type = 'Encounter' AND cdm_table = 'visit_occurrence'"
        )
    }
    details = {
        row_id: name
        for name, row_id in warehouse.rows(
            "SELECT resource_id, row_id FROM row_source WHERE cdm_table = 'visit_detail'"
        )
    }
    found = values(warehouse, "specimen", "visit_occurrence_id, visit_detail_id")
    assert {name: (visits.get(visit), details.get(detail)) for name, (visit, detail) in found.items()} == {
        "s1": ("e1", None),  # of its results one has no visit
        "s2": ("e1", "part"),
        "s3": ("e1", None),  # the second night ends what the first one's two visits left open
        "s4": ("e1", None),  # moved by the second night
        "s5": (None, None),  # a result of another person says nothing
        "s6": ("late", None),  # an Encounter of the second night
    }


def test_a_specimen_loses_the_visit_of_a_result_that_goes(world: World) -> None:
    """Each night in its own way: another visit beside the first, the result without its specimen, the visit gone."""
    fresh = world.fresh
    query = "SELECT count(visit_occurrence_id) FROM cdm.specimen"
    assert fresh.value(query) == 5
    fresh.load({"Observation": [of_specimen("more", "s1", "e2")]})
    assert fresh.value(query) == 4
    fresh.load({"Observation": [observation("more"), of_specimen("r3", "s2", None)]})
    assert fresh.value(query) == 4
    fresh.load({"Encounter": [encounter("late", status="entered-in-error")]})
    assert fresh.value(query) == 3
    fresh.load({"Encounter": [encounter("late")], "Observation": [of_specimen("r3", "s2")]})
    assert fresh.value(query) == 5
    report = verify_deep(fresh.runtime, DeepRequest(persons=None))
    assert report.differences == []


def test_cdm_source_says_which_version_and_whose(world: World) -> None:
    for warehouse in (world.upgraded, world.fresh):
        row = "SELECT cdm_version, cdm_version_concept_id, cdm_source_name, cdm_release_identifier FROM cdm.cdm_source"
        version, concept_id, name, release = warehouse.rows(row)[0]
        assert (version, concept_id, name) == ("v5.5", 0, "epic-omop")  # this vocabulary has no concept of it
        day = warehouse.value("SELECT cdm_release_date FROM cdm.cdm_source")
        assert release.startswith(f"{day.isoformat()}/")
    assert {row[0] for row in world.upgraded.rows("SELECT DISTINCT cdm_version FROM publication")} == {"v5.4", "v5.5"}


def test_settings_of_cdm_source_are_written_by_the_next_load_also_where_no_row_changes(world: World) -> None:
    fresh = world.fresh
    row = "SELECT * FROM cdm.cdm_source"
    with fresh.runtime.connect() as connection:
        (note,) = instance_notes(fresh.runtime.settings.cdm_source, connection)
    for words in ("EPIC_OMOP_CDM_SOURCE_NAME", "EPIC_OMOP_CDM_SOURCE_ABBREVIATION", "EPIC_OMOP_CDM_HOLDER"):
        assert words in note
    before = fresh.rows(row)
    fresh.load(nights()[1])
    fresh.load(nights()[1])
    unchanged = fresh.rows(row)
    fresh.load(nights()[1])
    assert fresh.rows(row) == unchanged
    assert before[0][:6] == unchanged[0][:6]
    source = CdmSource(
        cdm_source_name="Example Health, Epic",
        cdm_source_abbreviation="EXH",
        cdm_holder="Example Health",
        source_description="All patients since 2012",
        source_documentation_reference="https://example.org/data",
        cdm_etl_reference="https://example.org/etl",
        cdm_release_identifier="2026-Q1",
        source_release_date=date(2026, 1, 31),
    )
    named = replace(
        fresh, runtime=Runtime(of_version(fresh, "5.5", cdm_source=source).runtime.settings, fresh.runtime.clock)
    )
    named.load(nights()[1])
    columns = ", ".join(source.model_dump())
    found = named.rows(f"SELECT {columns} FROM cdm.cdm_source")[0]
    given = source.model_dump()
    # What no setting gives stands still: no row of the CDM changed.
    release = fresh_column(unchanged, fresh, "cdm_release_date")
    assert dict(zip(given, found, strict=True)) == {**given, "cdm_release_date": release}
    with named.runtime.connect() as connection:
        assert list(instance_notes(source, connection)) == []


def fresh_column(rows: list[tuple[Any, ...]], warehouse: Warehouse, column: str) -> Any:
    """A column of `SELECT *` of the table cdm_source."""
    names = [field.name for field in fields("cdm_source", warehouse.runtime.settings.cdm_version)]
    return rows[0][names.index(column)]


def test_the_vocabularys_new_tables(world: World, tmp_path: Path) -> None:
    """5.5 loads them where the download has them; 5.4 leaves them out, unread."""
    folder = tmp_path / "download"
    folder.mkdir()
    for file in DEMO.glob("*.csv"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "PACK_CONTENT.csv").write_text("pack_concept_id\tdrug_concept_id\tamount\tbox_size\n1\t2\t3\t\n")
    (folder / "concept_metadata.csv").write_text("concept_id\tconcept_category\treuse_status\n1\tA\t\n\tM\tR\n")
    header = (
        "concept_id_1\tconcept_id_2\trelationship_id\trelationship_predicate_id\trelationship_group\tmapping_source\t"
        "confidence\tmapping_tool\tmapper\treviewer"
    )
    (folder / "CONCEPT_RELATIONSHIP_METADATA.csv").write_text(
        f"{header}\n1\t2\tMaps to\texactMatch\t1\tmanual\t0.95\tUsagi\tA\tB\n"
    )
    new = ["CONCEPT_RELATIONSHIP_METADATA.csv", "PACK_CONTENT.csv", "concept_metadata.csv"]
    assert ignored_files(folder, CdmVersion.V5_4) == new
    assert ignored_files(folder, CdmVersion.V5_5) == []
    upgraded = world.upgraded
    before = upgraded.value("SELECT count(*) FROM concept")
    load_vocabulary(upgraded.runtime.url, folder, vocab_schema="vocab", etl_schema="etl")
    assert upgraded.rows("SELECT * FROM pack_content") == [(1, 2, 3, None)]
    assert upgraded.rows("SELECT * FROM concept_metadata ORDER BY 1") == [(1, "A", None), (None, "M", "R")]
    assert upgraded.value("SELECT confidence::text FROM concept_relationship_metadata") == "0.95"
    assert upgraded.value("SELECT count(*) FROM concept") == before
    load_vocabulary(upgraded.runtime.url, DEMO, vocab_schema="vocab", etl_schema="etl")
    assert upgraded.value("SELECT count(*) FROM pack_content") == 0


def test_a_5_4_database_does_not_read_files_of_5_5(empty_5_4: str, tmp_path: Path) -> None:
    folder = tmp_path / "download"
    folder.mkdir()
    for file in DEMO.glob("*.csv"):
        (folder / file.name).write_bytes(file.read_bytes())
    plain = load_vocabulary(empty_5_4, folder, vocab_schema="vocab", etl_schema="etl")
    (folder / "PACK_CONTENT.csv").write_bytes(b"not even a header of it\n")
    again = load_vocabulary(empty_5_4, folder, vocab_schema="vocab", etl_schema="etl")
    assert again.content_hash == plain.content_hash


@pytest.fixture
def empty_5_4(demo_warehouse: Prepared) -> Iterator[str]:
    with demo_warehouse.copy() as url:
        yield url


def test_the_versions_concept_is_looked_up(empty_5_4: str) -> None:
    """The latest Standard concept of a bug-fix release of the version; of 5.4 the one that it always was."""
    with psycopg.connect(empty_5_4) as connection:
        assert version_concept(connection, "vocab", CdmVersion.V5_5) == 0
        for concept_id, code, standard, invalid in (
            (7001, "CDM v5.5.0", "S", None), (7002, "CDM v5.5.1", "S", None), (7003, "CDM v5.5.2", None, None),
            (7004, "CDM v5.5.3", "S", "D"), (7005, "CDM v5.50.0", "S", None),
        ):  # fmt: skip
            connection.execute(
                "INSERT INTO vocab.concept VALUES (%s, 'OMOP CDM', 'Metadata', 'CDM', 'CDM', %s, %s, '1970-01-01',"
                " '2099-12-31', %s)",
                (concept_id, standard, code, invalid),
            )
        assert version_concept(connection, "vocab", CdmVersion.V5_5) == 7002
        assert version_concept(connection, "vocab", CdmVersion.V5_4) == 756265
        connection.rollback()
        assert database_version(connection, "cdm") == "5.4"
        assert database_version(connection, "nothing") is None


def test_what_a_person_is_told(empty_5_4: str, tmp_path: Path) -> None:
    """By the program itself: which command comes next, and what was left out."""
    home, folder = tmp_path / "home", tmp_path / "download"
    home.mkdir()
    shutil.copytree(DEMO, folder)
    (folder / "PACK_CONTENT.csv").write_text("pack_concept_id\tdrug_concept_id\tamount\tbox_size\n1\t2\t3\t4\n")
    old = CommandLine(home, empty_5_4)
    new = CommandLine(home, empty_5_4, {"EPIC_OMOP_CDM_VERSION": "5.5"})
    loaded = old.run("vocabulary", "load", folder)
    assert "Left out: PACK_CONTENT.csv. Their tables are not of the OMOP CDM 5.4." in loaded.out
    refused = new.run("db", "init", code=2)
    assert "`epic-omop db upgrade`" in " ".join(refused.err.split())
    upgraded = new.run("db", "upgrade")
    assert "holds the OMOP CDM 5.5 now: 7 columns and 3 tables are new since 5.4" in " ".join(upgraded.out.split())
    assert "epic-omop remap --site" in upgraded.out
    assert "Left out" not in new.run("vocabulary", "load", folder).out
    assert "EPIC_OMOP_CDM_VERSION=5.5" in " ".join(old.run("status", code=2).err.split())
    with psycopg.connect(empty_5_4) as connection:
        assert connection.execute("SELECT * FROM vocab.pack_content").fetchall() == [(1, 2, 3, 4)]


def test_a_snapshot_of_5_5(world: World, tmp_path: Path) -> None:
    runtime = world.upgraded.runtime
    report = publish_snapshot(runtime, lakehouse_folder(str(tmp_path / "lake")), SnapshotOptions(vocabulary=True))
    said = orjson.loads((report.folder / "snapshot.json").read_bytes())
    assert said["cdm_version"] == "v5.5"
    columns = {path: [column["name"] for column in table["columns"]] for path, table in said["tables"].items()}
    assert columns["cdm/observation"] == [field.name for field in fields("observation", CdmVersion.V5_5)]
    assert {"vocab/pack_content", "vocab/concept_metadata", "vocab/concept_relationship_metadata"} < columns.keys()
    assert "OMOP CDM v5.5" in (report.folder / "open.sql").read_text()


def test_a_snapshot_has_the_tables_and_columns_of_the_version() -> None:
    columns = {
        version: {
            (table.name, column)
            for table in lake_tables(version, vocabulary=True, lineage=False)
            for column in table.columns
        }
        for version in CdmVersion
    }
    assert ("specimen", "visit_detail_id") in columns[CdmVersion.V5_5] - columns[CdmVersion.V5_4]
    assert ("pack_content", "amount") in columns[CdmVersion.V5_5] - columns[CdmVersion.V5_4]
    assert {table for table, _ in columns[CdmVersion.V5_4]} == set(tables_of(CdmVersion.V5_4))
    assert set(CDM_TABLES) < {table for table, _ in columns[CdmVersion.V5_5]}
