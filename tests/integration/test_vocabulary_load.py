"""A download goes into a real PostgreSQL and comes out as a concept index."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omop_schema import cdm
from omop_schema.versions import CdmVersion
from pipeline.core.errors import VocabularyError
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.concepts.index import ANCESTOR_FILE, INDEX_FILE
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.warehouse.local_map.overlay import with_local_map
from pipeline.warehouse.schema import install_schemas
from pipeline.warehouse.vocabulary import (
    LoadOptions,
    compile_index,
    concept_counts,
    current_release,
    ensure_index,
    load_vocabulary,
    open_index,
)

SCHEMAS = {"vocab_schema": "vocab", "etl_schema": "etl"}
DATES = "19700101\t20991231"

#: concept_id, domain, vocabulary, standard, code, invalid_reason
CONCEPTS = [
    (1, "Condition", "SNOMED", "S", "c1", ""),
    (2, "Measurement", "SNOMED", "S", "m2", ""),
    (3, "Observation", "SNOMED", "S", "o3", ""),
    (4, "Meas Value", "SNOMED", "S", "v4", ""),
    (5, "Meas Value", "SNOMED", "S", "v5", ""),
    (6, "Condition", "SNOMED", "", "retired", "D"),
    (7, "Condition", "SNOMED", "S", "alone", ""),  # Standard without the row that says so
    (10, "Condition", "ICD10CM", "", "ONE", ""),
    (11, "Condition", "ICD10CM", "", "TWO", ""),
    (12, "Condition", "ICD10CM", "", "VALUES", ""),
    (13, "Condition", "ICD10CM", "", "CARRIER", ""),
    (14, "Condition", "ICD10CM", "", "PAIRS", ""),
    (15, "Condition", "ICD10CM", "", "CROSS", ""),
    (16, "Condition", "ICD10CM", "", "NONE", ""),
    (17, "Condition", "ICD10CM", "", "OLDMAP", ""),
    (18, "Condition", "ICD10CM", "", "REPLACED", "U"),
    (19, "Condition", "ICD10CM", "", "CHAIN", "U"),
    (20, "Condition", "ICD10CM", "", "CYCLE1", "U"),
    (21, "Condition", "ICD10CM", "", "CYCLE2", "U"),
    (22, "Condition", "ICD10CM", "", "INVALID", "D"),
    (23, "Condition", "ICD10CM", "", "TODEAD", ""),
    (24, "Drug", "NDC", "", "reused", "D"),
    (25, "Drug", "NDC", "", "reused", ""),
    (26, "Condition", "ICD10CM", "", "VALUEONLY", ""),
]
MAPS_TO = [(i, i) for i in (1, 2, 3, 4, 5)] + [
    (10, 1), (11, 1), (11, 3), (12, 3), (13, 1), (13, 2), (14, 2), (14, 3), (15, 2), (15, 3),
    (22, 1), (23, 6), (25, 3),
]  # fmt: skip
VALUES = [(12, 4), (12, 5), (13, 4), (14, 4), (14, 5), (15, 4), (26, 4)]
REPLACED_BY = [(18, 13), (19, 18), (20, 21), (21, 20), (10, 11)]

#: code → [(target, value)] by the rules in the docstring of compile_index
EXPECTED = {
    "ONE": [(1, None)],  # its own `Maps to` wins over its replacement's
    "TWO": [(1, None), (3, None)],
    "VALUES": [(3, 4), (3, 5)],
    "CARRIER": [(1, None), (2, 4)],
    "PAIRS": [(2, 4), (3, 5)],
    "CROSS": [(2, 4), (3, 4)],
    "NONE": [(None, None)],
    "OLDMAP": [(None, None)],
    "REPLACED": [(1, None), (2, 4)],
    "CHAIN": [(1, None), (2, 4)],
    "CYCLE1": [(None, None)],
    "CYCLE2": [(None, None)],
    "INVALID": [(1, None)],
    "TODEAD": [(None, None)],
    "VALUEONLY": [(None, None)],
}


def write(folder: Path, table: str, lines: list[str], *, header: str | None = None) -> None:
    columns = header or "\t".join(field.name for field in cdm.fields(table))
    (folder / f"{table.upper()}.csv").write_text("\n".join([columns, *lines, ""]), encoding="utf-8")


def make_download(folder: Path, *, concepts=CONCEPTS, version="v5.0 TEST") -> Path:
    folder.mkdir(exist_ok=True)
    vocabularies = sorted({concept[2] for concept in concepts})
    write(folder, "vocabulary", [f"None\tOMOP\t\t{version}\t0", *(f"{v}\t{v}\t\t\t0" for v in vocabularies)])
    write(folder, "domain", [f"{domain}\t{domain}\t0" for domain in sorted({item[1] for item in concepts})])
    write(folder, "concept_class", ["Undefined\tUndefined\t0"])
    write(folder, "relationship", ["Maps to\tMaps to\t0\t0\tMapped from\t0"])
    write(
        folder,
        "concept",
        [
            f'{i}\tname "{i}" \\ of\t{domain}\t{vocabulary}\tUndefined\t{standard}\t{code}\t{DATES}\t{invalid}'
            for i, domain, vocabulary, standard, code, invalid in concepts
        ],
    )
    links = [(a, b, "Maps to", "") for a, b in MAPS_TO] + [(17, 1, "Maps to", "D")]
    links += [(a, b, "Maps to value", "") for a, b in VALUES] + [(10, 4, "Maps to value", "D")]
    links += [(a, b, "Concept replaced by", "") for a, b in REPLACED_BY]
    write(folder, "concept_relationship", [f"{a}\t{b}\t{name}\t{DATES}\t{bad}" for a, b, name, bad in links])
    write(folder, "concept_ancestor", ["1\t1\t0\t0", "1\t7\t1\t1"])
    return folder


@pytest.fixture
def url(installed_url):
    """The module's database without a vocabulary: emptying it is quicker than installing another."""
    with psycopg.connect(installed_url) as connection:
        connection.execute("TRUNCATE etl.vocabulary_release, etl.local_map")
        for table in set(cdm.VOCABULARY_TABLES) & set(cdm.tables_of(CdmVersion.V5_4)):
            connection.execute(f"TRUNCATE vocab.{table}")
    return installed_url


@pytest.fixture
def download(tmp_path):
    return make_download(tmp_path / "download")


def load(url, folder, *, progress=None, **options):
    return load_vocabulary(url, folder, **SCHEMAS, progress=progress, options=LoadOptions(**options))


def query(url, statement):
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchall()


def pairs_of(index, vocabulary, *codes):
    asked = pl.DataFrame({"vocabulary_id": [vocabulary] * len(codes), "concept_code": list(codes)})
    found: dict[str, list[tuple[int | None, int | None]]] = {}
    columns = ("concept_code", "target_concept_id", "value_concept_id")
    for code, target, value in index.lookup(asked).select(columns).rows():
        found.setdefault(code, []).append((target, value))
    return found


def test_a_download_is_loaded_with_quotes_and_backslashes_as_data(url, download):
    seen = []
    release = load(url, download, progress=lambda file, done, size: seen.append((file, done, size)))

    assert (release.release, release.folder_label) == ("v5.0 TEST", "download")
    assert release.concept_count == len(CONCEPTS)
    assert current_release(url, etl_schema="etl") == release
    assert query(url, "SELECT concept_name FROM vocab.concept WHERE concept_id = 1") == [('name "1" \\ of',)]
    assert query(url, "SELECT valid_end_date::text, invalid_reason FROM vocab.concept WHERE concept_id = 18") == [
        ("2099-12-31", "U")
    ]
    assert query(url, "SELECT count(*) FROM vocab.concept WHERE standard_concept IS NULL") == [(18,)]
    assert next(iter(concept_counts(url, vocab_schema="vocab"))) == "ICD10CM"
    size = (download / "CONCEPT.csv").stat().st_size
    assert ("CONCEPT.csv", size, size) in seen


def test_keys_and_indices_are_back_after_a_load(url, download):
    count = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'vocab'"
    before = query(url, count)
    load(url, download)
    assert query(url, count) == before
    assert not install_schemas(url, cdm="cdm", vocab="vocab", etl="etl").changed


def test_a_load_replaces_what_was_there_and_keeps_the_history_of_releases(url, download, tmp_path):
    first = load(url, download)
    second = load(url, make_download(tmp_path / "next", concepts=CONCEPTS[:5], version="v6.0 TEST"), force=True)
    assert query(url, "SELECT count(*) FROM vocab.concept") == [(5,)]
    assert current_release(url, etl_schema="etl") == second
    assert second.content_hash != first.content_hash
    assert query(url, "SELECT release, is_current FROM etl.vocabulary_release ORDER BY release") == [
        ("v5.0 TEST", False),
        ("v6.0 TEST", True),
    ]
    assert load(url, download, force=True).content_hash == first.content_hash
    assert query(url, "SELECT count(*) FROM etl.vocabulary_release") == [(2,)]


def test_a_download_without_a_version_is_known_by_its_content(url, tmp_path):
    release = load(url, make_download(tmp_path / "plain", version=""))
    assert release.release == release.content_hash[:16]


def test_columns_are_found_by_name_in_any_order_and_case(url, download):
    lines = (download / "CONCEPT.csv").read_text().splitlines()
    turned = ["\t".join(reversed(line.split("\t"))) for line in lines]
    turned[0] = "\ufeff" + turned[0].upper()
    (download / "CONCEPT.csv").write_text("\r\n".join(turned) + "\r\n")
    load(url, download)
    assert query(url, "SELECT concept_code, domain_id FROM vocab.concept WHERE concept_id = 12") == [
        ("VALUES", "Condition")
    ]


def test_cpt4_without_names_and_unknown_files_are_left_out(url, download):
    (download / "CONCEPT_CPT4.csv").write_text("concept_id\tconcept_code\n1\t99213\n")
    (download / "cpt4.jar").write_bytes(b"PK")
    assert load(url, download).concept_count == len(CONCEPTS)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x\tname\tCondition\tSNOMED\tUndefined\tS\tcode\t19700101\t20991231\t", r'integer: "x" \(column concept_id\)'),
        ("99\tname\tCondition\tSNOMED\tUndefined\tS\tcode\t19701301\t20991231\t", r"column valid_start_date"),
        ("99\tname\tCondition", "missing data"),
        ("99\tname\tCondition\tSNOMED\tUndefined\tS\tcode\t19700101\t20991231\t\tmore", "extra data"),
        ("99\tname\tCondition\tSNOMED\tUndefined\tStandard\tcode\t19700101\t20991231\t", "too long"),
        ("99\tname\tCondition\tSNOMED\tUndefined\tS\tcode\t\t20991231\t", "null value"),
    ],
)
def test_a_broken_line_is_named_and_nothing_has_changed(url, download, line, reason):
    before = load(url, download)
    with (download / "CONCEPT.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(VocabularyError, match=rf"CONCEPT\.csv:{len(CONCEPTS) + 2}: .*{reason}"):
        load(url, download)
    assert query(url, "SELECT count(*) FROM vocab.concept") == [(len(CONCEPTS),)]
    assert current_release(url, etl_schema="etl") == before
    assert not install_schemas(url, cdm="cdm", vocab="vocab", etl="etl").changed


def test_a_concept_that_is_there_twice_is_refused(url, download):
    with (download / "CONCEPT.csv").open("a") as file:
        file.write(f"1\ttwice\tCondition\tSNOMED\tUndefined\tS\tc1\t{DATES}\t\n")
    with pytest.raises(VocabularyError, match=r"CONCEPT.csv: concept_id 1 is there 2 times, in the lines 2, 26"):
        load(url, download)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("domain_id\tdomain_name", "column domain_concept_id is missing"),
        ("domain_id\tdomain_name\tdomain_concept_id\tnote", "column 'note' is unknown"),
        ("domain_id,domain_name,domain_concept_id", "separated by commas"),
        ("domain_id\tdomain_name\tdomain_concept_id\tdomain_id", "twice"),
        ("\ufeffdomain_id\tdomain_name\tdomain_concept_id".encode("utf-16").decode("latin-1"), "UTF-16"),
        ("", "is empty"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(url, download, header, reason):
    write(download, "domain", [], header=header or "\n")
    with pytest.raises(VocabularyError, match=rf"DOMAIN\.csv.*{reason}"):
        load(url, download)


def test_without_the_schemas_the_next_step_is_named(database_url, download):
    with pytest.raises(VocabularyError, match=r"no table vocab\.concept.*epic-omop db init"):
        load(database_url, download)


def test_foreign_keys_to_the_vocabulary_are_kept_and_checked(database_url, download, tmp_path):
    url = database_url
    install_schemas(url, cdm="cdm", vocab="vocab", etl="etl", include_vocabulary_constraints=True)
    count = "SELECT count(*) FROM pg_constraint WHERE contype = 'f'"
    before = query(url, count)
    with pytest.raises(VocabularyError, match="violates foreign key"):
        load(url, download)  # concept 0, which vocabularies refer to, is not in it
    complete = [*CONCEPTS, (0, "Metadata", "None", "", "No matching concept", "")]
    folder = make_download(tmp_path / "complete", concepts=complete)
    names = "Maps to", "Maps to value", "Concept replaced by"
    write(folder, "relationship", [f"{name}\t{name}\t0\t0\tx\t0" for name in names])
    vocabularies = "None", "ICD10CM", "NDC", "SNOMED"
    write(folder, "vocabulary", [f"{name}\t{name}\t\t\t0" for name in vocabularies])
    load(url, folder)
    assert query(url, count) == before


@pytest.fixture(scope="module")
def compiled(installed_url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    load(installed_url, make_download(folder / "download"))
    return ensure_index(installed_url, **SCHEMAS, home=folder / "home")


def test_the_index_follows_the_rules(compiled):
    assert pairs_of(compiled, "ICD10CM", *EXPECTED) == EXPECTED


def test_a_standard_concept_is_its_own_target_even_without_saying_so(compiled):
    assert pairs_of(compiled, "SNOMED", "c1", "alone", "retired") == {
        "c1": [(1, None)],
        "alone": [(7, None)],
        "retired": [(None, None)],
    }


def test_of_a_code_that_was_used_twice_the_valid_concept_counts(compiled):
    found = compiled.lookup(pl.DataFrame({"vocabulary_id": ["NDC"], "concept_code": ["reused"]}))
    assert found.select("source_concept_id", "target_concept_id").rows() == [(25, 3)]


def test_source_columns_tell_what_the_code_itself_is(compiled):
    found = compiled.lookup(pl.DataFrame({"vocabulary_id": ["ICD10CM"], "concept_code": ["REPLACED"]}))
    assert found.row(0, named=True) == {
        "vocabulary_id": "ICD10CM",
        "concept_code": "REPLACED",
        "source_concept_id": 18,
        "source_domain_id": "Condition",
        "source_standard_concept": None,
        "source_invalid_reason": "U",
        "pair_number": 1,
        "target_concept_id": 1,
        "target_domain_id": "Condition",
        "target_vocabulary_id": "SNOMED",
        "value_concept_id": None,
        "unit_concept_id": None,
    }


def test_the_files_are_sorted_and_hold_every_code_once(compiled):
    rows = pl.read_parquet(compiled.folder / INDEX_FILE).select("vocabulary_id", "concept_code", "pair_number").rows()
    assert rows == sorted(rows)
    assert len({row[:2] for row in rows}) == len({concept[2:5:2] for concept in CONCEPTS})
    assert pl.read_parquet(compiled.folder / ANCESTOR_FILE).rows() == [(1, 7)]
    assert compiled.descents(pl.Series([1, 7])).rows() == [(1, 7)]


def test_fixed_concepts_follow_the_index(compiled):
    found = compiled.verify_fixed({1: "one", 18: "replaced", 6: "retired", 404: "absent"})
    assert [(item.status, item.use_concept_id) for item in found.values()] == [
        ("ok", 1),
        ("replaced", 1),
        ("missing", 0),
        ("missing", 0),
    ]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(targets=st.integers(1, 4), values=st.integers(1, 4))
def test_no_target_and_no_value_is_ever_lost(installed_url, tmp_path_factory, targets, values):
    """N `Maps to` × M `Maps to value`, all targets able to carry a value."""
    folder = tmp_path_factory.mktemp("pairs")
    concepts = [(i, "Observation", "SNOMED", "S", f"t{i}", "") for i in range(1, targets + 1)]
    concepts += [(100 + i, "Meas Value", "SNOMED", "S", f"v{i}", "") for i in range(values)]
    make_download(folder, concepts=[*concepts, (50, "Condition", "ICD10CM", "", "X", "")])
    links = [f"50\t{i}\tMaps to\t{DATES}\t" for i in range(1, targets + 1)]
    links += [f"50\t{100 + i}\tMaps to value\t{DATES}\t" for i in range(values)]
    write(folder, "concept_relationship", links)
    load(installed_url, folder, force=True)
    pairs = pairs_of(ensure_index(installed_url, **SCHEMAS, home=folder / "home"), "ICD10CM", "X")["X"]
    assert {target for target, _ in pairs} == set(range(1, targets + 1))
    assert {value for _, value in pairs} == {100 + i for i in range(values)}
    assert len(pairs) == (targets if targets == values else targets * values)


@pytest.mark.requirement("f2o-030")
def test_a_site_map_is_loaded_kept_by_later_downloads_and_wins_over_the_vocabulary(url, download, tmp_path):
    write(
        download,
        "source_to_concept_map",
        [
            f"900133\t2000000001\tHospital drugs\tmouthwash\t3\tSNOMED\t{DATES}\t",
            f"900133\t2000000001\tHospital drugs\tmouthwash\t1\tSNOMED\t{DATES}\t",
            f"900178\t0\tHospital drugs\tretired map\t1\tSNOMED\t{DATES}\tD",
            f"900179\t0\tHospital drugs\tnot mapped yet\t0\tNone\t{DATES}\t",
            f"ONE\t10\tICD10CM\tcorrected\t3\tSNOMED\t{DATES}\t",
            f"TWO\t11\tICD10CM\tnot usable\t6\tSNOMED\t{DATES}\t",
        ],
    )
    first = load(url, download)
    again = load(url, make_download(tmp_path / "without"))
    assert again.content_hash == first.content_hash
    plain = ensure_index(url, **SCHEMAS, home=tmp_path / "home")
    index = with_local_map(url, plain, None, load_mappings(MAPPINGS_FOLDER), **SCHEMAS)
    local = pairs_of(index, "Hospital drugs", "900133", "900178", "900179")
    assert local == {"900133": [(1, None), (3, None)]}
    assert pairs_of(index, "ICD10CM", "ONE", "TWO") == {"ONE": [(3, None)], "TWO": [(1, None), (3, None)]}
    asked = pl.DataFrame({"vocabulary_id": ["Hospital drugs"], "concept_code": ["900133"]})
    assert set(index.lookup(asked)["source_concept_id"]) == {2000000001}


def test_an_index_is_compiled_once_and_opened_by_release(url, download, tmp_path):
    home = tmp_path / "home"
    release = load(url, download)
    folder = compile_index(url, release, vocab_schema="vocab", home=home)
    written = (folder / INDEX_FILE).stat().st_mtime_ns
    assert compile_index(url, release, vocab_schema="vocab", home=home) == folder
    assert (folder / INDEX_FILE).stat().st_mtime_ns == written

    next_release = load(url, make_download(tmp_path / "next", concepts=CONCEPTS[:7], version="v6.0 TEST"), force=True)
    newest = ensure_index(url, **SCHEMAS, home=home)
    assert open_index(home) == newest
    assert newest.release == "v6.0 TEST"
    assert open_index(home, next_release.content_hash) == newest
    assert open_index(home, "v5.0 TEST").folder == folder
    assert {path.name for path in folder.iterdir()} == {
        "ancestor.parquet",
        "concept_by_id.parquet",
        "concept_index.parquet",
        "drug_strength.parquet",
        "release.json",
    }


def test_several_processes_may_ask_for_the_index_at_once(url, download, tmp_path):
    load(url, download)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ensure_index(url, **SCHEMAS, home=tmp_path / "home"), range(4)))
    assert len(set(found)) == 1
    assert pairs_of(found[0], "ICD10CM", "TWO") == {"TWO": [(1, None), (3, None)]}


def test_an_interrupted_compilation_is_begun_again(url, download, tmp_path):
    release = load(url, download)
    partial = tmp_path / "home" / "vocabulary" / f".{release.content_hash[:16]}-4.partial"
    partial.mkdir(parents=True)
    (partial / INDEX_FILE).write_bytes(b"half a file")
    index = ensure_index(url, **SCHEMAS, home=tmp_path / "home")
    assert pairs_of(index, "SNOMED", "c1") == {"c1": [(1, None)]}
    assert not partial.exists()


def test_without_a_load_there_is_no_index(url, tmp_path):
    assert current_release(url, etl_schema="etl") is None
    with pytest.raises(VocabularyError, match="No vocabulary is loaded"):
        ensure_index(url, **SCHEMAS, home=tmp_path)


def test_the_demonstration_vocabulary_loads_on_another_server_too(other_database_url, tmp_path):
    install_schemas(other_database_url, cdm="cdm", vocab="vocab", etl="etl")
    release = load(other_database_url, MAPPINGS_FOLDER / "demo_vocabulary")
    assert release.release == "epic-omop demo 1"
    index = ensure_index(other_database_url, **SCHEMAS, home=tmp_path)
    assert pairs_of(index, "ICD10CM", "E11.9", "I10") == {"E11.9": [(201826, None)], "I10": [(320128, None)]}
    assert pairs_of(index, "UCUM", "[U]/L", "mg/dL") == {"[U]/L": [(8645, None)], "mg/dL": [(8840, None)]}
