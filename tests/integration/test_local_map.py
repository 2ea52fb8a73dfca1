"""Local maps, apart from releases: what is approved maps at once, and a release is asked about every target."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import psycopg
import pytest

from omop_schema import cdm
from omop_schema.versions import CdmVersion
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.concepts.index import INDEX_FILE
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.warehouse.local_map.overlay import align_local_map, with_local_map
from pipeline.warehouse.local_map.source_to_concept_map import short_vocabulary_id
from pipeline.warehouse.local_map.targets import recheck_local_map
from pipeline.warehouse.vocabulary import LoadOptions, ensure_index, load_vocabulary
from tests.integration.test_vocabulary_load import CONCEPTS, MAPS_TO, make_download, write

SCHEMAS = {"vocab_schema": "vocab", "etl_schema": "etl"}
LONG = "https://fhir.example.org/codes/" + "of-a-laboratory/" * 30
TEXT = "A text that says more than fifty characters hold, about glucose in blood"

#: A further release: 1 (Condition) is deprecated and maps to 7; 2 is deprecated and maps to nothing.
LATER = [
    (i, domain, vocabulary, "" if i in (1, 2) else standard, code, "U" if i in (1, 2) else invalid)
    for i, domain, vocabulary, standard, code, invalid in CONCEPTS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local_map")


@pytest.fixture(scope="module")
def loaded_url(installed_url, folder):
    with psycopg.connect(installed_url) as connection:
        for table in set(cdm.VOCABULARY_TABLES) & set(cdm.tables_of(CdmVersion.V5_4)):
            connection.execute(f"TRUNCATE vocab.{table}")
    load_vocabulary(installed_url, make_download(folder / "first"), **SCHEMAS)
    return installed_url


@pytest.fixture
def url(loaded_url):
    with psycopg.connect(loaded_url) as connection:
        connection.execute("TRUNCATE etl.local_map, vocab.source_to_concept_map")
    return loaded_url


def run(url, statement, *values):
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def decide(url, *answers):
    """`answers`: site, system, code, text, target, kind."""
    for site, system, code, text, target, kind in answers:
        run(
            url,
            "INSERT INTO etl.local_map (site, source_system, source_code, source_text, target_concept_id, kind, status)"
            " VALUES (%s, %s, %s, %s, %s, %s, 'approved')",
            *(site, system, code, text, target, kind),
        )


def index_of(url, folder, site="north"):
    index = ensure_index(url, **SCHEMAS, home=folder / "home")
    return with_local_map(url, index, site, load_mappings(MAPPINGS_FOLDER), **SCHEMAS)


def found(index, vocabulary, code):
    rows = index.lookup(pl.DataFrame({"vocabulary_id": [vocabulary], "concept_code": [code]}))
    return rows.select("source_concept_id", "target_concept_id", "value_concept_id").rows()


def table(url):
    return run(
        url,
        "SELECT source_vocabulary_id, source_code, target_concept_id FROM vocab.source_to_concept_map ORDER BY 1, 2, 3",
    )


def align(url):
    with psycopg.connect(url) as connection:
        return align_local_map(connection, **SCHEMAS).notes


def test_what_is_approved_is_laid_over_the_release_without_compiling_it(url, folder):
    plain = index_of(url, folder)
    assert (plain.local, plain.local_hash) == (None, "")
    compiled = (plain.folder / INDEX_FILE).stat().st_mtime_ns
    decide(
        url,
        (None, LONG, "GLU", None, 2, "to"),
        (None, LONG, "GLU", None, 4, "value"),
        (None, LONG.upper(), "BOTH", None, 1, "to"),
        (None, LONG, "BOTH", None, 2, "to"),
        (None, LONG, "BOTH", None, 4, "value"),
        ("south", LONG, "GLU", None, 1, "to"),
        (None, "1.2.3", "OID", None, 3, "to"),
        (None, "ICD10CM", "two", None, 7, "to"),
        (None, "http://hl7.org/fhir/sid/icd-10-cm", "ONE", None, 0, "to"),
        (None, LONG, "DEAD", None, 6, "to"),
        (None, "ICD10CM", "VALUES", None, 6, "to"),
        (None, "text", None, TEXT, 3, "to"),
    )
    run(url, "INSERT INTO etl.local_map (source_system, source_code, target_concept_id) VALUES (%s, 'OPEN', 1)", LONG)
    index = index_of(url, folder)
    assert (index.folder / INDEX_FILE).stat().st_mtime_ns == compiled
    assert index.content_hash == plain.content_hash
    assert index.local_hash
    assert found(index, LONG, "GLU") == [(0, 2, 4)]
    assert found(index, LONG.rstrip("/"), "BOTH") == [(0, 1, None), (0, 2, 4)]
    assert found(index, "urn:oid:1.2.3", "OID") == [(0, 3, None)]
    assert found(index, "ICD10CM", "TWO") == [(11, 7, None)], (
        "in another way of writing the code; its own concept stays"
    )
    assert found(index, "ICD10CM", "ONE") == [(10, None, None)], "reviewed, no map"
    assert found(index, LONG, "DEAD") == found(index, LONG, "OPEN") == []
    assert found(index, "ICD10CM", "VALUES") == [(12, 3, 4), (12, 3, 5)], "a target that cannot be used changes nothing"
    assert found(index, "text", TEXT) == found(index, "text", TEXT.upper().replace(" ", "\u00a0")) == [(0, 3, None)]
    assert found(index, "text", TEXT[:50]) == []
    south = index_of(url, folder, "south")
    assert found(south, LONG, "GLU") == [(0, 1, None)], "a site's own answer stands in place of that of all sites"
    assert south.local_hash != index.local_hash
    assert index_of(url, folder) == index
    os.utime(south.local, (0, 0))
    decide(url, (None, LONG, "NEXT", None, 1, "to"))
    index_of(url, folder)
    assert index.local.exists()
    assert not south.local.exists(), "that of former answers, when nothing has used it for long"


def test_the_table_of_the_cdm_is_made_from_it(url):
    decide(
        url,
        ("north", LONG, "GLU", None, 2, "to"),
        (None, LONG, "x" * 60, None, 2, "to"),
        (None, LONG, "x" * 60 + "y", None, 2, "to"),
        (None, "urn:local", "A", None, 1, "to"),
        (None, "urn:local", "B", None, 0, "to"),
        (None, "text", None, TEXT, 3, "to"),
    )
    assert align(url) == ()
    rows = table(url)
    assert ("urn:local", "A", 1) in rows
    assert ("text", TEXT[:49], 3) in rows or ("text", TEXT[:50], 3) in rows
    assert len(rows) == 5
    ids = {name for name, _, _ in rows}
    named = dict(
        run(url, "SELECT vocabulary_id, vocabulary_name FROM vocab.vocabulary WHERE vocabulary_id = ANY(%s)", list(ids))
    )
    assert named.keys() == ids
    north = short_vocabulary_id("north", LONG)
    assert len(north) <= 20
    assert (north, "GLU", 2) in rows
    assert named[north].startswith("north: https://fhir.example.org/codes/")
    run(url, "UPDATE etl.local_map SET valid_until = now() WHERE source_code = 'GLU'")
    run(url, "UPDATE etl.local_map SET status = 'flagged' WHERE source_code = 'A'")
    align(url)
    assert len(table(url)) == 3
    assert align(url) == ()


def test_rows_of_the_table_are_taken_in_or_named(url, folder):
    """As an existing warehouse has them, and as a steward inserts them by SQL."""
    insert = "INSERT INTO vocab.source_to_concept_map VALUES (%s, 0, %s, NULL, %s, 'SNOMED', '1970-01-01', '2099-12-31', NULL)"
    run(url, insert, "HTN", "urn:old", 1)
    run(url, insert, "TWO", "urn:old", 1)
    run(url, insert, "TWO", "urn:old", 3)
    run(url, insert, "DEAD", "urn:old", 6)
    run(url, insert, TEXT[:50].strip(), "text", 3)
    run(url, insert, "TWO", "ICD10CM", 7)
    before = table(url)
    notes = align(url)
    assert any("DEAD → 6, which cannot be used: concept 6 is no longer valid" in note for note in notes)
    assert table(url) == before
    index = index_of(url, folder)
    assert found(index, "urn:old", "TWO") == [(0, 1, None), (0, 3, None)]
    assert found(index, "urn:old", "DEAD") == []
    assert found(index, "ICD10CM", "TWO") == [(11, 7, None)]
    assert found(index, "text", TEXT) == [(0, 3, None)], "a text that was cut is the beginning of the whole"
    assert found(index, "text", TEXT[:40]) == []
    decide(url, ("north", LONG, "GLU", None, 2, "to"))
    align(url)
    run(url, insert, "NEW", short_vocabulary_id("north", LONG), 1)
    run(url, insert, "HTN", "urn:old", 2)
    notes = align(url)
    assert any("HTN → 2, which is not taken in" in note for note in notes)
    query = "SELECT site, source_system FROM etl.local_map WHERE source_code = 'NEW'"
    assert run(url, query) == [("north", LONG)]
    run(url, "DELETE FROM vocab.source_to_concept_map WHERE source_code = 'HTN'")
    assert any("1 rows were deleted" in note for note in align(url))
    assert ("urn:old", "HTN", 1) in table(url)


def test_a_release_is_asked_about_every_target_and_the_former_one_brings_them_back(url, folder):
    decide(
        url,
        (None, "urn:x", "FOLLOW", None, 1, "to"),
        (None, "urn:x", "LOST", None, 2, "to"),
        (None, "urn:x", "STAYS", None, 3, "to"),
        (None, "urn:x", "NOTHING", None, 0, "to"),
    )
    align(url)
    later = make_download(folder / "later", concepts=LATER, version="v6.0 TEST")
    links = [(a, b) for a, b in MAPS_TO if 1 not in (a, b) and 2 not in (a, b)] + [(1, 7)]
    write(later, "concept_relationship", [f"{a}\t{b}\tMaps to\t19700101\t20991231\t" for a, b in links])
    load_vocabulary(url, later, **SCHEMAS, options=LoadOptions(force=True))
    with psycopg.connect(url) as connection:
        report = recheck_local_map(connection, **SCHEMAS)
    assert [(item.answer.source_code, item.former_concept_id) for item in report.followed] == [("FOLLOW", 1)]
    assert [answer.source_code for answer in report.flagged] == ["LOST"]
    assert report.checked == 3
    index = index_of(url, folder)
    assert found(index, "urn:x", "FOLLOW") == [(0, 7, None)]
    assert found(index, "urn:x", "LOST") == []
    assert ("urn:x", "FOLLOW", 7) in table(url)
    assert ("urn:x", "FOLLOW", 1) not in table(url)
    versions = run(
        url,
        "SELECT version, target_concept_id, valid_until IS NULL FROM etl.local_map WHERE source_code = 'FOLLOW' ORDER BY 1",
    )
    assert versions == [(1, 1, False), (2, 7, True)]
    load_vocabulary(url, folder / "first", **SCHEMAS, options=LoadOptions(force=True))
    with psycopg.connect(url) as connection:
        report = recheck_local_map(connection, **SCHEMAS)
    assert {answer.source_code for answer in report.restored} == {"FOLLOW", "LOST"}
    index = index_of(url, folder)
    assert found(index, "urn:x", "FOLLOW") == [(0, 1, None)]
    assert found(index, "urn:x", "LOST") == [(0, 2, None)]
    with psycopg.connect(url) as connection:
        assert recheck_local_map(connection, **SCHEMAS).sentences() == []


def test_who_may_not_write_reads_what_is_there(url, folder):
    decide(url, (None, "urn:x", "A", None, 1, "to"))
    with psycopg.connect(url) as connection:
        connection.execute("CREATE ROLE only_reads NOLOGIN")
        connection.execute("GRANT USAGE ON SCHEMA etl, vocab TO only_reads")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA etl, vocab TO only_reads")
        connection.execute("SET ROLE only_reads")
        notes = align_local_map(connection, **SCHEMAS).notes
        assert ["may not write it" in note for note in notes] == [True]
        connection.rollback()
    assert table(url) == []
