"""Releases side by side: the switch, the gate before it, going back, and what downloads are really like."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import psycopg
import pytest
from alembic import command
from alembic.config import Config

import omop_schema
from omop_schema import cdm
from pipeline.core.clock import ManualClock
from pipeline.core.errors import UsageError, VocabularyError
from pipeline.warehouse.schema import install_schemas, transaction
from pipeline.warehouse.vocabulary import (
    LoadOptions,
    current_release,
    ensure_index,
    list_releases,
    load_vocabulary,
    prune_vocabulary,
    use_release,
)
from pipeline.warehouse.vocabulary.diff import changed_codes, codes_in_use
from pipeline.warehouse.vocabulary.index_files import index_of, prune_indices
from pipeline.warehouse.vocabulary.switching import hold_vocabulary
from tests.command_line import CommandLine

SCHEMAS = {"vocab_schema": "vocab", "etl_schema": "etl"}
DATES = "19700101\t20991231"
START = datetime(2026, 3, 1, tzinfo=UTC)


class Download:
    """A download of some 60 concepts whose lines a test changes before it is written."""

    def __init__(self, version: str = "v5.0 27-FEB-26") -> None:
        self.version = version
        self.concepts = {0: ("No matching concept", "Metadata", "None", "", "No matching concept")}
        self.concepts |= {i: (f"finding {i}", "Condition", "SNOMED", "S", f"s{i}") for i in range(1, 41)}
        self.concepts |= {i: (f"diagnosis {i}", "Condition", "ICD10CM", "", f"E{i}") for i in range(101, 121)}
        self.concepts |= {201: ("a visit", "Visit", "Visit", "S", "OP")}
        self.maps_to = {i: i for i in range(1, 41)} | {i: i - 100 for i in range(101, 121)}
        self.more: dict[str, list[str]] = {"concept_synonym": ["1\tanother name\t0"]}

    def without(self, vocabulary: str) -> Download:
        self.concepts = {i: row for i, row in self.concepts.items() if row[2] != vocabulary}
        self.maps_to = {a: b for a, b in self.maps_to.items() if a in self.concepts and b in self.concepts}
        return self

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        rows = list(self.concepts.values())
        vocabularies = sorted({row[2] for row in rows} | {"None"})
        made = {"None": "OMOP generated", "Visit": "OMOP generated"}
        tables = {
            "vocabulary": [
                f"{name}\t{name}\t{made.get(name, '')}\t{self.version if name == 'None' else ''}\t0"
                for name in vocabularies
            ],
            "domain": [f"{name}\t{name}\t0" for name in sorted({row[1] for row in rows})],
            "concept_class": ["Undefined\tUndefined\t0"],
            "relationship": ["Maps to\tMaps to\t0\t0\tMapped from\t0"],
            "concept": [
                f"{i}\t{name}\t{domain}\t{vocabulary}\tUndefined\t{standard}\t{code}\t{DATES}\t"
                for i, (name, domain, vocabulary, standard, code) in self.concepts.items()
            ],
            "concept_relationship": [f"{a}\t{b}\tMaps to\t{DATES}\t" for a, b in self.maps_to.items()],
            "concept_ancestor": ["1\t1\t0\t0", "1\t2\t1\t1"],
            **self.more,
        }
        for table, content in tables.items():
            header = "\t".join(field.name for field in cdm.fields(table))
            (folder / f"{table.upper()}.csv").write_bytes("\n".join([header, *content, ""]).encode())
        return folder


@pytest.fixture
def url(installed_url: str) -> str:
    """The module's database without a vocabulary."""
    with psycopg.connect(installed_url) as connection:
        connection.execute("TRUNCATE etl.vocabulary_release")
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'vocab'").fetchall()
        for (table,) in rows:
            connection.execute(f"TRUNCATE vocab.{table}")
        connection.execute("TRUNCATE cdm.person, cdm.condition_occurrence CASCADE")
    return installed_url


def load(url: str, download: Download | Path, tmp_path: Path, **options):
    folder = download if isinstance(download, Path) else download.write(tmp_path / f"d{time.monotonic_ns()}")
    clock = options.pop("clock", None)
    progress = options.pop("progress", None)
    return load_vocabulary(url, folder, **SCHEMAS, clock=clock, progress=progress, options=LoadOptions(**options))


def query(url: str, statement: str) -> list[tuple]:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def schemas_of(url: str) -> list[str]:
    """The vocabulary's schema and those beside it."""
    rows = query(url, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'vocab%' ORDER BY 1")
    return [name for (name,) in rows]


# --- the switch -------------------------------------------------------------------------------------------------------


@contextmanager
def reading(url: str):
    """Somebody who queries vocab.concept in a loop; gives the list of the waits in seconds."""
    waits: list[float] = []
    ended = threading.Event()

    def read() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not ended.is_set():
                began = time.monotonic()
                connection.execute(
                    "SELECT concept_name FROM vocab.concept WHERE concept_id = 1", prepare=True
                ).fetchall()
                waits.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            yield waits
        finally:
            ended.set()
            reader.result()


def test_readers_go_on_beside_an_open_transaction_that_has_read_the_vocabulary(url, tmp_path):
    load(url, Download(), tmp_path)
    renamed = Download("v5.0 30-AUG-26")
    renamed.concepts[1] = ("another name", *renamed.concepts[1][1:])
    with psycopg.connect(url) as open_transaction, reading(url) as waits:
        open_transaction.execute("SELECT * FROM vocab.concept").fetchall()
        release = load(url, renamed, tmp_path)
        assert query(url, "SELECT concept_name FROM vocab.concept WHERE concept_id = 1") == [("another name",)]
        assert current_release(url, etl_schema="etl") == release
    assert len(waits) > 10
    assert max(waits) <= 1


def test_a_prepared_statement_reads_the_new_release(url, tmp_path):
    load(url, Download(), tmp_path)
    with psycopg.connect(url, autocommit=True) as connection:
        count = "SELECT count(*) FROM vocab.concept WHERE concept_id = %s"
        for _ in range(7):
            assert connection.execute(count, (300,), prepare=True).fetchone() == (0,)
        more = Download("v5.0 30-AUG-26")
        more.concepts[300] = ("new", "Condition", "SNOMED", "S", "new")
        load(url, more, tmp_path)
        assert connection.execute(count, (300,), prepare=True).fetchone() == (1,)


def test_grants_keys_views_and_a_sites_own_objects_go_over(url, tmp_path):
    load(url, Download(), tmp_path)
    with psycopg.connect(url) as connection:
        for statement in (
            "DO $$ BEGIN CREATE ROLE vocabulary_reader NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
            "GRANT USAGE ON SCHEMA vocab TO vocabulary_reader",
            "GRANT SELECT ON vocab.concept TO vocabulary_reader",
            "GRANT SELECT (domain_id) ON vocab.domain TO vocabulary_reader",
            "ALTER DEFAULT PRIVILEGES IN SCHEMA vocab GRANT SELECT ON TABLES TO vocabulary_reader",
            "CREATE INDEX own_index ON vocab.concept (lower(concept_name))",
            "CREATE TABLE vocab.own_table AS SELECT 1 AS a",
            "CREATE VIEW vocab.own_view AS SELECT concept_id FROM vocab.concept WHERE vocabulary_id = 'SNOMED'",
            "CREATE SCHEMA IF NOT EXISTS mart",
            "CREATE VIEW mart.standard AS SELECT concept_id FROM vocab.own_view JOIN vocab.concept USING (concept_id)",
            "CREATE FUNCTION vocab.own_count() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM vocab.concept'",
            "GRANT SELECT ON mart.standard TO vocabulary_reader",
        ):
            connection.execute(statement)
    try:
        more = Download("v5.0 30-AUG-26")
        more.concepts[300] = ("new", "Condition", "SNOMED", "S", "new")
        release = load(url, more, tmp_path)
        assert not release.notes["warnings"]
        rights = "has_table_privilege('vocabulary_reader', '{}', 'SELECT')"
        assert query(url, f"SELECT {rights.format('vocab.concept')}, {rights.format('vocab.relationship')},"
                          f" {rights.format('mart.standard')}") == [(True, False, True)]  # fmt: skip
        assert query(url, "SELECT has_column_privilege('vocabulary_reader', 'vocab.domain', 'domain_id', 'SELECT'),"
                          " has_column_privilege('vocabulary_reader', 'vocab.domain', 'domain_name', 'SELECT'),"
                          " has_schema_privilege('vocabulary_reader', 'vocab', 'USAGE')") == [(True, False, True)]  # fmt: skip
        assert query(url, "SELECT indexname FROM pg_indexes WHERE schemaname = 'vocab' AND indexname = 'own_index'")
        assert query(url, "SELECT a, vocab.own_count() FROM vocab.own_table") == [(1, 63)]
        assert query(url, "SELECT count(*) FROM mart.standard WHERE concept_id = 300") == [(1,)]
        query(url, "CREATE TABLE vocab.later AS SELECT 1 AS a")
        assert query(url, f"SELECT {rights.format('vocab.later')}") == [(True,)]
        assert not install_schemas(url, cdm="cdm", vocab="vocab", etl="etl").changed
    finally:
        query(url, "DROP SCHEMA mart CASCADE")
        for what in ("VIEW vocab.own_view", "TABLE vocab.own_table, vocab.later", "FUNCTION vocab.own_count"):
            query(url, f"DROP {what}")
        query(url, "DROP OWNED BY vocabulary_reader")


def test_a_view_that_cannot_follow_is_named_and_its_release_stays(url, tmp_path):
    first = load(url, Download(), tmp_path)
    query(url, "CREATE MATERIALIZED VIEW public.kept AS SELECT concept_id FROM vocab.concept")
    try:
        release = load(url, Download("v5.0 30-AUG-26"), tmp_path, keep=1)
        assert any("materialized view public.kept" in text for text in release.notes["warnings"])
        assert any("kept needs its tables" in text for text in release.notes["warnings"])
        assert query(url, "SELECT count(*) FROM public.kept") == [(62,)]
        assert (
            use_release(url, first.content_hash[:12], **SCHEMAS, force=True).release.content_hash == first.content_hash
        )
    finally:
        query(url, "DROP MATERIALIZED VIEW public.kept")


def test_who_is_in_the_way_is_named_and_the_release_can_be_used_later(database_url, tmp_path):
    """Optional foreign keys are the one thing for which the tables themselves must be locked."""
    url = database_url
    install_schemas(url, cdm="cdm", vocab="vocab", etl="etl")
    first = load(url, Download(), tmp_path)
    query(url, "ALTER TABLE cdm.person ADD CONSTRAINT own FOREIGN KEY (gender_concept_id) REFERENCES vocab.concept")
    newer = Download("v5.0 30-AUG-26")
    newer.concepts[300] = ("new", "Condition", "SNOMED", "S", "new")
    said: list[str] = []
    with psycopg.connect(url, application_name="atlas") as holder, reading(url) as waits:
        holder.execute("SELECT * FROM vocab.concept").fetchall()
        with pytest.raises(VocabularyError, match=r"program atlas, idle in transaction.*vocabulary use [0-9a-f]{12}"):
            load(url, newer, tmp_path, clock=ManualClock(START), patience=1.0, waiting=said.append)
    assert max(waits) <= 1
    assert said
    assert current_release(url, etl_schema="etl") == first
    (ready,) = [item for item in list_releases(url, etl_schema="etl") if not item.is_current]
    use_release(url, ready.content_hash[:8], **SCHEMAS)
    assert query(url, "SELECT count(*) FROM vocab.concept") == [(63,)]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        query(url, "INSERT INTO cdm.person VALUES (1, 999, 1980, 1, 1, NULL, 0, 0)")
    assert query(url, "SELECT convalidated FROM pg_constraint WHERE conname = 'own'") == [(True,)]
    query(url, "INSERT INTO cdm.person VALUES (1, 300, 1980, 1, 1, NULL, 0, 0)")
    with pytest.raises(VocabularyError, match=r"violates foreign key own of cdm.person: it does not have 300"):
        load(url, Download("v5.0 30-SEP-26"), tmp_path, force=True)
    assert len(schemas_of(url)) == 2


def test_a_switch_waits_for_a_publication_and_for_a_snapshot(url, tmp_path):
    load(url, Download(), tmp_path)
    newer = Download("v5.0 30-AUG-26")
    with psycopg.connect(url, application_name="night") as night:
        night.execute("SELECT pg_advisory_xact_lock(hashtext('epic-omop publication etl'))")
        with pytest.raises(VocabularyError, match=r"program night.*holds a publication or snapshot"):
            load(url, newer, tmp_path, clock=ManualClock(START), patience=0)
    with psycopg.connect(url, application_name="lake") as lake:
        hold_vocabulary(lake, "etl")
        with pytest.raises(VocabularyError, match="program lake"):
            load(url, newer, tmp_path, clock=ManualClock(START), patience=0)
    assert load(url, newer, tmp_path).is_current


# --- releases ---------------------------------------------------------------------------------------------------------


def test_going_back_and_forth_takes_custom_concepts_and_maps_along(url, tmp_path):
    first = load(url, Download(), tmp_path)
    for statement in (
        "INSERT INTO vocab.vocabulary VALUES ('Hospital', 'ours', '', '', 2000000000)",
        (
            "INSERT INTO vocab.concept (concept_id, concept_name, domain_id, vocabulary_id, concept_class_id, concept_code,"
            " valid_start_date, valid_end_date) VALUES (2000000001, 'own', 'Condition', 'Hospital', 'Undefined', 'own',"
            " '19700101', '20991231')"
        ),
        "INSERT INTO vocab.concept_relationship VALUES (2000000001, 1, 'Maps to', '19700101', '20991231', NULL)",
        "INSERT INTO vocab.vocabulary VALUES ('H_1', 'ours', '', '', 0)",
        "INSERT INTO vocab.source_to_concept_map VALUES ('x', 0, 'H_1', 'local', 1, 'SNOMED', '19700101', '20991231', NULL)",
    ):
        query(url, statement)
    second = load(url, Download("v5.0 30-AUG-26"), tmp_path)
    added = (
        "SELECT (SELECT concept_name FROM vocab.concept WHERE concept_id = 2000000001),"
        " (SELECT count(*) FROM vocab.concept_relationship WHERE concept_id_1 = 2000000001),"
        " (SELECT count(*) FROM vocab.source_to_concept_map),"
        " (SELECT count(*) FROM vocab.vocabulary WHERE vocabulary_id IN ('Hospital', 'H_1'))"
    )
    assert query(url, added) == [("own", 1, 1, 2)]
    home = tmp_path / "home"
    index = ensure_index(url, **SCHEMAS, home=home)
    asked = pl.DataFrame({"vocabulary_id": ["Hospital"], "concept_code": ["own"]})
    assert index.lookup(asked)["target_concept_id"].to_list() == [1]

    query(url, "UPDATE vocab.concept SET concept_name = 'renamed' WHERE concept_id = 2000000001")
    back = use_release(url, "v5.0 27-FEB-26", **SCHEMAS, force=True).release
    assert query(url, added) == [("renamed", 1, 1, 2)]
    assert back.download_hash == first.download_hash
    assert back.content_hash != first.content_hash, "its content is another one now"
    assert ensure_index(url, **SCHEMAS, home=home).content_hash == back.content_hash

    query(url, "DELETE FROM vocab.concept WHERE concept_id = 2000000001")
    assert use_release(url, "v5.0 30-AUG-26", **SCHEMAS).release.release == second.release
    assert query(url, added) == [(None, 1, 1, 2)]
    assert {item.state for item in list_releases(url, etl_schema="etl")} == {"ready"}


def test_two_downloads_of_one_label_are_two_releases(url, tmp_path):
    first = load(url, Download(), tmp_path)
    other = Download()
    other.concepts[300] = ("one more", "Condition", "SNOMED", "S", "more")
    second = load(url, other, tmp_path)
    assert first.release == second.release
    assert first.content_hash != second.content_hash
    home = tmp_path / "home"
    assert ensure_index(url, **SCHEMAS, home=home).content_hash == second.content_hash
    with pytest.raises(UsageError, match=r"several releases.*hash"):
        use_release(url, "V5.0 27-feb-26", **SCHEMAS)
    use_release(url, first.content_hash[:10], **SCHEMAS)
    assert ensure_index(url, **SCHEMAS, home=home).content_hash == first.content_hash
    assert query(url, "SELECT count(*) FROM vocab.concept") == [(62,)]
    with pytest.raises(UsageError, match="no vocabulary release"):
        use_release(url, "v9", **SCHEMAS)


def test_loading_the_active_release_again_repairs_it(url, tmp_path):
    first = load(url, Download(), tmp_path)
    query(url, "DELETE FROM vocab.concept WHERE concept_id < 30")
    again = load(url, Download(), tmp_path)
    assert again.content_hash == first.content_hash
    assert query(url, "SELECT count(*) FROM vocab.concept") == [(62,)]
    assert [item.is_current for item in list_releases(url, etl_schema="etl")] == [True]
    assert schemas_of(url) == ["vocab"]


def test_a_warehouse_of_before_keeps_its_vocabulary_without_a_load(database_url, tmp_path):
    """Its release has neither counts nor a hash of its files alone: both are made up for when the next one comes."""
    url = database_url
    install_schemas(url, cdm="cdm", vocab="vocab", etl="etl")
    load(url, Download(), tmp_path)
    with transaction(url) as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(omop_schema.__file__).parent / "migrations"))
        config.attributes.update(connection=connection, etl_schema="etl")
        command.downgrade(config, "0022")
        connection.exec_driver_sql(
            "INSERT INTO etl.vocabulary_release VALUES ('v4', '2020-01-01', 'old', 5, 'abc', false);"
            "INSERT INTO etl.publication (export_id, published_at, vocabulary_release, fingerprint, cdm_version, ig_version,"
            " software_version, rows_inserted, rows_deleted) SELECT number, CASE number WHEN 1 THEN now() ELSE '2019-01-01' END,"
            " CASE number WHEN 1 THEN 'v5.0 27-FEB-26' ELSE 'v4' END, '', '', '', '', '{}', '{}'"
            " FROM generate_series(1, 2) AS number"
        )
    assert install_schemas(url, cdm="cdm", vocab="vocab", etl="etl").etl_upgraded
    former = current_release(url, etl_schema="etl")
    assert former.state == "ready"
    assert query(url, "SELECT vocabulary_hash FROM etl.publication ORDER BY export_id") == [
        (former.content_hash,), (None,),
    ]  # fmt: skip
    with pytest.raises(VocabularyError, match="ICD10CM is not in it"):
        load(url, Download("v5.0 30-AUG-26").without("ICD10CM"), tmp_path)
    load(url, Download("v5.0 30-AUG-26"), tmp_path)
    back = use_release(url, former.content_hash, **SCHEMAS, force=True).release
    assert back.content_hash == former.content_hash
    assert query(url, "SELECT release, state FROM etl.vocabulary_release WHERE NOT is_current ORDER BY 1") == [
        ("v4", "dropped"),
        ("v5.0 30-AUG-26", "ready"),
    ]


def test_two_releases_are_kept_and_index_folders_go_with_their_release(url, tmp_path):
    home = tmp_path / "home"
    for month in ("FEB", "MAR", "APR"):
        load(url, Download(f"v5.0 27-{month}-26"), tmp_path)
        ensure_index(url, **SCHEMAS, home=home)
    states = [(item.release, item.is_current, item.state) for item in list_releases(url, etl_schema="etl")]
    assert states == [
        ("v5.0 27-APR-26", True, "ready"),
        ("v5.0 27-MAR-26", False, "ready"),
        ("v5.0 27-FEB-26", False, "dropped"),
    ]
    assert len(schemas_of(url)) == 2
    assert len(list((home / "vocabulary").glob("*/release.json"))) == 2
    with pytest.raises(VocabularyError, match="are gone"):
        use_release(url, "v5.0 27-FEB-26", **SCHEMAS, force=True)
    with pytest.raises(UsageError, match="always kept"):
        prune_vocabulary(url, **SCHEMAS, keep=0)
    gone, problems = prune_vocabulary(url, **SCHEMAS, keep=1)
    assert [item.release for item in gone] == ["v5.0 27-MAR-26"]
    assert not problems
    assert prune_indices(home, list_releases(url, etl_schema="etl")) == 1
    assert schemas_of(url) == ["vocab"]


def test_two_loads_at_once_come_one_after_the_other(url, tmp_path):
    downloads = [Download(f"v5.0 27-{month}-26") for month in ("MAR", "MAR")]
    downloads[1].concepts[300] = ("one more", "Condition", "SNOMED", "S", "more")
    with ThreadPoolExecutor(2) as pool:
        loaded = list(pool.map(lambda download: load(url, download, tmp_path, force=True), downloads))
    releases = list_releases(url, etl_schema="etl")
    assert {item.content_hash for item in releases} == {item.content_hash for item in loaded}
    assert [item.is_current for item in releases] == [True, False]
    assert len(schemas_of(url)) == 2


_KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.warehouse.vocabulary import LoadOptions, load_vocabulary
from pipeline.warehouse.vocabulary import switching

def die(*_): os.kill(os.getpid(), signal.SIGKILL)
def shown(file, done, size):
    if file == place: die()
url, folder, place = sys.argv[1:]
if place == "switch": switching._Attempt._record = die
compare = die if place == "compared" else (lambda *_: ())
load_vocabulary(url, Path(folder), vocab_schema="vocab", etl_schema="etl", progress=shown,
                options=LoadOptions(compare=compare))
"""


@pytest.mark.parametrize("place", ["CONCEPT_ANCESTOR.csv", "statistics", "compared", "switch"])
def test_a_load_that_is_killed_leaves_a_usable_state_and_no_litter(url, tmp_path, place):
    first = load(url, Download(), tmp_path)
    newer = Download("v5.0 30-AUG-26")
    newer.concepts[300] = ("new", "Condition", "SNOMED", "S", "new")
    folder = newer.write(tmp_path / "newer")
    killed = subprocess.run([sys.executable, "-c", _KILLED, url, str(folder), place], cwd=Path.cwd(), check=False,
                            capture_output=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    assert current_release(url, etl_schema="etl") == first
    assert query(url, "SELECT count(*) FROM vocab.concept") == [(62,)]
    second = load(url, folder, tmp_path)
    assert query(url, "SELECT count(*) FROM vocab.concept") == [(63,)]
    assert [item.content_hash for item in list_releases(url, etl_schema="etl")] == [
        second.content_hash, first.content_hash,
    ]  # fmt: skip
    assert len(schemas_of(url)) == 2


# --- the gate ---------------------------------------------------------------------------------------------------------


def _shrunk(vocabulary: str, count: int) -> Download:
    download = Download("v5.0 30-AUG-26")
    for concept in [i for i, row in download.concepts.items() if row[2] == vocabulary][:count]:
        del download.concepts[concept]
        download.maps_to = {a: b for a, b in download.maps_to.items() if concept not in (a, b)}
    return download


def _unmapped() -> Download:
    download = Download("v5.0 30-AUG-26")
    for concept in (101, 102):
        del download.maps_to[concept]
    return download


def _dangling() -> Download:
    download = Download("v5.0 30-AUG-26")
    download.maps_to[101] = 999
    return download


def _delta(folder: Path) -> None:
    (folder / "CONCEPT_DELTA.csv").write_text("")


@pytest.mark.parametrize(
    ("download", "change", "reason"),
    [
        (Download("v5.0 30-AUG-26").without("ICD10CM"), None, "ICD10CM is not in it, of which 20 concepts"),
        (_shrunk("ICD10CM", 2), None, "concepts of ICD10CM fall by 10%, from 20 to 18"),
        (_unmapped(), None, "`Maps to` of ICD10CM fall by 10%, from 20 to 18"),
        (_dangling(), None, "1 of 60 relationships name a concept that it does not have"),
        (Download("v5.0 30-AUG-25"), None, "older than the active one of 27 February 2026"),
        (Download("v5.0 30-AUG-26"), _delta, "delta download"),
    ],
    ids=["vanished", "concepts", "maps to", "dangling", "older", "delta"],
)
def test_what_is_refused_with_its_reason(url, tmp_path, download, change, reason):
    first = load(url, Download(), tmp_path)
    folder = download.write(tmp_path / "bad")
    if change:
        change(folder)
    with pytest.raises(VocabularyError, match=reason):
        load(url, folder, tmp_path)
    assert current_release(url, etl_schema="etl") == first
    assert schemas_of(url) == ["vocab"]
    if change is None:
        assert load(url, folder, tmp_path, force=True).is_current


def test_a_good_download_needs_no_force(url, tmp_path):
    load(url, Download(), tmp_path)
    assert load(url, _shrunk("SNOMED", 1), tmp_path).is_current, "2.5 % less"


# --- what downloads are really like -----------------------------------------------------------------------------------


def _line(text: str, concept: int = 300) -> bytes:
    return f"{concept}\t{text}\tCondition\tSNOMED\tUndefined\tS\tnew{concept}\t{DATES}\t\n".encode()


def _append(folder: Path, content: bytes, file: str = "CONCEPT.csv") -> None:
    with (folder / file).open("ab") as lines:
        lines.write(content)


@pytest.mark.parametrize(
    ("content", "name", "repair"),
    [
        (_line("a\rb"), "a b", "carriage returns inside a field"),
        (_line("a\r\nb"), "a b", "line breaks inside a field"),
        (_line("a\nb"), "a b", "line breaks inside a field"),
        (_line("ł" * 255), "ł" * 255, None),
        (_line("ł" * 256), "ł" * 255, "concept_name cut to 255 characters"),
        (_line("x" * 400 + "\r"), "x" * 255, "concept_name cut to 255 characters"),
        (_line('say "ah" \\N'), 'say "ah" \\N', None),
        (_line(""), "", None),
        (_line("no end")[:-1], "no end", None),
        (_line("ends in CRLF")[:-1] + b"\r\n", "ends in CRLF", None),
        (_line("a blank line follows") + b"\n\n", "a blank line follows", None),
    ],
    ids=range(11),
)
def test_names_as_they_come(url, tmp_path, content, name, repair):
    folder = Download().write(tmp_path / "d")
    _append(folder, content)
    release = load(url, folder, tmp_path)
    assert query(url, "SELECT concept_name FROM vocab.concept WHERE concept_id = 300") == [(name,)]
    found = [(item["what"], item["first_line"]) for item in release.notes["repairs"]]
    assert len(found) >= bool(repair)
    if repair:
        assert any(what.startswith(repair) and line == 64 for what, line in found)
    else:
        assert not found


def test_long_synonyms_are_cut_and_counted(url, tmp_path):
    download = Download()
    download.more["concept_synonym"] = [f"{i}\t{'s' * (999 + i)}\t0" for i in range(1, 4)]
    release = load(url, download, tmp_path)
    assert query(url, "SELECT max(length(concept_synonym_name)), count(*) FROM vocab.concept_synonym") == [(1000, 3)]
    assert [(item["file"], item["what"], item["count"], item["first_line"]) for item in release.notes["repairs"]] == [
        ("CONCEPT_SYNONYM.csv", "concept_synonym_name cut to 1000 characters", 2, 3)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_line("twice", 1), r"concept_id 1 is there 2 times, in the lines 3, 64.*Take one of the lines out"),
        (
            _line("twice", 300).replace(b"SNOMED", b"CPT4") * 2,
            r"concept_id 300 is there 2 times, in the lines 64, 65.*cpt.sh was run twice",
        ),
        (_line("too\tmany"), r"CONCEPT.csv:64: .*the same there"),
        (b"300\ttoo few", r"CONCEPT.csv:64: .*The file ends there"),
        (_line("ok\rok") + _line("x", 301).replace(b"SNOMED", b"S" * 30), r"CONCEPT.csv:65: value too long.*vocabulary_id"),
        (
            _line("x").replace(b"SNOMED", b"CPT4").replace(b"19700101", b"1970"),
            r"CONCEPT.csv:64: .*valid_start_date.*unpack CONCEPT.csv from the zip file again and run cpt.sh once",
        ),
        (_line("é").replace("é".encode(), b"\xe9"), r"CONCEPT.csv:64: .*UTF8"),
    ],
    ids=["duplicate", "duplicate of CPT4", "tab", "cut", "long id", "CPT4 line", "encoding"],
)  # fmt: skip
def test_what_cannot_be_loaded_is_named_with_advice_that_helps(url, tmp_path, content, message):
    first = load(url, Download(), tmp_path)
    folder = Download("v5.0 30-AUG-26").write(tmp_path / "bad")
    _append(folder, content)
    with pytest.raises(VocabularyError, match=message) as refused:
        load(url, folder, tmp_path, force=True)
    assert "ownload it again" not in str(refused.value)
    assert current_release(url, etl_schema="etl") == first
    assert schemas_of(url) == ["vocab"]


@pytest.mark.parametrize("has_names", [True, False])
def test_cpt4_that_is_not_merged_maps_without_names(url, tmp_path, has_names):
    download = Download()
    download.maps_to |= {900: 1, 901: 2}
    folder = download.write(tmp_path / "d")
    columns = [field.name for field in cdm.fields("concept") if has_names or field.name != "concept_name"]
    rows = [
        "\t".join(([str(i), ""] if has_names else [str(i)]) + ["Procedure", "CPT4", "CPT4", "S", f"9921{i}", DATES, ""])
        for i in (900, 901)
    ]
    (folder / "CONCEPT_CPT4.csv").write_text("\n".join(["\t".join(columns), *rows, ""]))
    merged = folder / "CONCEPT.csv"
    merged.write_text(
        merged.read_text() + rows[1].replace("901\t\t", "901\tmerged\t") + "\n" if has_names else merged.read_text()
    )
    release = load(url, folder, tmp_path)
    assert release.notes["cpt4"] == (1 if has_names else 2)
    names = query(url, "SELECT concept_name FROM vocab.concept WHERE vocabulary_id = 'CPT4' ORDER BY concept_id")
    assert names == [("",), ("merged" if has_names else "",)]
    index = ensure_index(url, **SCHEMAS, home=tmp_path / "home")
    asked = pl.DataFrame({"vocabulary_id": ["CPT4"], "concept_code": ["9921900"]})
    assert index.lookup(asked)["target_concept_id"].to_list() == [1]


def test_only_leaves_out_the_rest(url, tmp_path):
    download = Download()
    download.concepts[301] = ("device", "Device", "NDC", "", "n1")
    download.maps_to |= {301: 1}
    download.more["concept_synonym"] += ["301\tdevice\t0"]
    folder = download.write(tmp_path / "d")
    with pytest.raises(UsageError, match=r"no vocabulary SNOMDE.*SNOMED"):
        load(url, folder, tmp_path, only=["SNOMDE"])
    load(url, folder, tmp_path)
    release = load(url, folder, tmp_path, only=["snomed", "ICD10CM"])
    assert query(url, "SELECT DISTINCT vocabulary_id FROM vocab.concept ORDER BY 1") == [
        ("ICD10CM",), ("None",), ("SNOMED",), ("Visit",),
    ]  # fmt: skip
    assert query(url, "SELECT count(*) FROM vocab.concept_relationship") == [(60,)]
    assert query(url, "SELECT count(*) FROM vocab.concept_synonym") == [(1,)]
    assert release.notes["left_out"] == 4  # vocabulary, concept, relationship, synonym
    _append(folder, _line("too\tmany"))
    with pytest.raises(VocabularyError, match=r"CONCEPT.csv:65:"):
        load(url, folder, tmp_path, only=["ICD10CM", "SNOMED"])


# --- codes in use -----------------------------------------------------------------------------------------------------

_IN_USE = """
    INSERT INTO cdm.person (person_id, gender_concept_id, year_of_birth, race_concept_id, ethnicity_concept_id)
    VALUES (1, 0, 1980, 0, 0);
    INSERT INTO cdm.condition_occurrence (condition_occurrence_id, person_id, condition_concept_id, condition_start_date,
        condition_type_concept_id, condition_source_value, condition_source_concept_id)
    SELECT number, 1, concept - 100, '2026-01-01', 0, 'E' || concept, concept
    FROM generate_series(1, 9) AS number, LATERAL (SELECT CASE WHEN number < 7 THEN 101 ELSE 102 END AS concept) AS code
"""


def test_the_diff_that_matters(url, tmp_path):
    first = load(url, Download(), tmp_path)
    query(url, _IN_USE)
    newer = Download("v5.0 30-AUG-26")
    newer.maps_to |= {101: 5, 119: 6}  # 119 is not in use
    second = load(url, newer, tmp_path)
    home = tmp_path / "home"
    with psycopg.connect(url) as connection:
        used = codes_in_use(connection, cdm_schema="cdm", vocab_schema="vocab", etl_schema="etl", vocabulary_of={}.get)
    former = next(item for item in list_releases(url, etl_schema="etl") if item.content_hash == first.content_hash)
    before, after = (index_of(url, item, **SCHEMAS, home=home) for item in (former, second))
    (change,) = changed_codes(used, before, after)
    assert (change.vocabulary_id, change.concept_code, dict(change.rows)) == (
        "ICD10CM",
        "E101",
        {"condition_occurrence": 6},
    )
    assert (change.before, change.after) == ({1: "finding 1"}, {5: "finding 5"})


def test_the_commands(url, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    terminal = CommandLine(home, url)
    first = Download().write(tmp_path / "first")
    assert "No vocabulary is loaded" in terminal.run("vocabulary", "list").out
    assert "62 concepts are loaded" in terminal.run("vocabulary", "load", str(first)).out
    query(url, _IN_USE)
    newer = Download("v5.0 30-AUG-26")
    newer.maps_to |= {101: 5}
    folder = newer.write(tmp_path / "newer")
    _append(folder, _line("x" * 300))
    loaded = terminal.run("vocabulary", "load", str(folder)).out
    assert "1 codes in use, of 6 rows, became something else" in loaded
    assert "CONCEPT.csv: 1 × concept_name cut to 255 characters, first in line 64." in loaded
    listed = terminal.run("vocabulary", "list").out
    assert [line.split()[0:2] for line in listed.splitlines()[1:]] == [["v5.0", "30-AUG-26"], ["v5.0", "27-FEB-26"]]
    assert all(len(line) <= 80 for line in listed.splitlines())
    hashes = [line.split()[2] for line in listed.splitlines()[1:]]
    compared = terminal.run("vocabulary", "diff").out
    assert "ICD10CM E101" in compared
    assert "5 finding 5" in compared
    assert all(len(line) <= 80 for line in compared.splitlines())
    refused = terminal.run("vocabulary", "use", hashes[1], code=1)
    assert "older than the active one" in refused.err
    assert "is the active one" in terminal.run("vocabulary", "use", hashes[1], "--force").out
    assert '"concept_code": "E101"' in terminal.run("vocabulary", "diff", "--json").out
    # What --only leaves out is refused where codes in use need it.
    left_out = terminal.run("vocabulary", "load", str(first), "--only", "SNOMED", code=1)
    assert "--only leaves out ICD10CM, which 2 codes of 9 rows in use need" in left_out.err
    assert "1 releases" in terminal.run("vocabulary", "prune", "--keep", "1").out
    assert "There is only one release" in terminal.run("vocabulary", "diff", code=1).err
    for arguments in (
        ("use", "nonsense"),
        ("prune", "--keep", "0"),
        ("diff", "nonsense"),
        ("load", str(tmp_path / "none")),
    ):
        result = terminal.run("vocabulary", *arguments, code=None)
        assert result.code not in {0, None}
        assert "Traceback" not in result.err
