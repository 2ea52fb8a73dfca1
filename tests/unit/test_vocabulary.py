"""Codes, the reading side of the concept index, and the demonstration vocabulary, without a database."""

from __future__ import annotations

import csv
import pickle
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context

import polars as pl
import pytest

from omop_schema import cdm
from omop_schema.versions import CdmVersion
from pipeline.core.errors import VocabularyError
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.concepts.index import (
    ANCESTOR_FILE,
    ANCESTOR_SCHEMA,
    CONCEPT_FILE,
    CONCEPT_SCHEMA,
    INDEX_FILE,
    INDEX_SCHEMA,
    ConceptIndex,
)
from pipeline.warehouse.vocabulary import load_vocabulary, open_index

DEMO = MAPPINGS_FOLDER / "demo_vocabulary"

INDEX_ROWS = [
    ("ICD10CM", "E11.9", 35206882, "Condition", None, None, 1, 201826, "Condition", "SNOMED", None, None),
    ("ICD10CM", "Z87.891", 45542411, "Observation", None, None, 1, 10, "Observation", "SNOMED", 20, None),
    ("ICD10CM", "Z87.891", 45542411, "Observation", None, None, 2, 10, "Observation", "SNOMED", 21, None),
    ("NDC", "00025152531", 44923712, "Drug", None, None, 1, None, None, None, None, None),
    ("UCUM", "Mg", 2, "Unit", "S", None, 1, 2, "Unit", "UCUM", None, None),
    ("UCUM", "[U]/L", 8645, "Unit", "S", None, 1, 8645, "Unit", "UCUM", None, None),
    ("UCUM", "mg", 8576, "Unit", "S", None, 1, 8576, "Unit", "UCUM", None, None),
]
CONCEPT_ROWS = [
    (5083, "Telehealth", "Visit", "CMS Place of Service", "Visit", None, None, 722455),
    (8507, "MALE", "Gender", "Gender", "Gender", "S", None, 8507),
    (8551, "UNKNOWN", "Gender", "Gender", "Gender", None, "D", None),
    (9117, "old unit", "Unit", "UCUM", "Unit", None, "U", 720870),
    (99, "no map", "Metadata", "None", "Undefined", None, None, None),
]


@pytest.fixture
def index(tmp_path):
    pl.DataFrame(INDEX_ROWS, schema=dict(INDEX_SCHEMA), orient="row").write_parquet(tmp_path / INDEX_FILE)
    pl.DataFrame(CONCEPT_ROWS, schema=dict(CONCEPT_SCHEMA), orient="row").write_parquet(tmp_path / CONCEPT_FILE)
    ancestors = pl.DataFrame([(1, 2), (1, 3), (2, 3)], schema=dict(ANCESTOR_SCHEMA), orient="row")
    ancestors.write_parquet(tmp_path / ANCESTOR_FILE)
    return ConceptIndex(tmp_path, "test release", "hash")


def codings(*pairs):
    schema = {"vocabulary_id": pl.String, "concept_code": pl.String}
    return pl.DataFrame(list(pairs), schema=schema, orient="row")


def test_lookup_is_case_sensitive_and_bound_to_the_vocabulary(index):
    found = index.lookup(codings(("UCUM", "Mg"), ("UCUM", "MG"), ("NDC", "mg"), ("SNOMED", "E11.9")))
    assert found["source_concept_id"].to_list() == [2]


def test_lookup_gives_all_pairs_of_a_code_in_order_and_a_row_without_target(index):
    found = index.lookup(codings(("ICD10CM", "Z87.891"), ("NDC", "00025152531"), ("ICD10CM", "Z87.891")))
    assert found.select("concept_code", "pair_number", "target_concept_id", "value_concept_id").rows() == [
        ("Z87.891", 1, 10, 20),
        ("Z87.891", 2, 10, 21),
        ("00025152531", 1, None, None),
    ]


def test_lookup_of_nothing_and_of_nulls(index):
    assert index.lookup(codings()).is_empty()
    assert index.lookup(codings((None, "E11.9"), ("ICD10CM", None))).is_empty()


def test_only_true_descendants_count(index):
    assert index.descents(pl.Series([1, 3, 3, 1])).rows() == [(1, 3)]
    assert index.descents(pl.Series([1, 2, 3])).rows() == [(1, 2), (1, 3), (2, 3)]
    assert index.descents(pl.Series([3])).is_empty()


@pytest.mark.requirement("f2o-030", "f2o-093")
def test_fixed_concepts_are_checked_and_each_trouble_is_told_by_name(index):
    names = {8507: "gender M", 5083: "class VR", 8551: "gender U", 9117: "unit", 99: "nothing", 12: "absent", 0: "none"}
    found = index.verify_fixed(names)
    assert {key: (value.status, value.use_concept_id) for key, value in found.items()} == {
        8507: ("ok", 8507),
        5083: ("replaced", 722455),
        8551: ("missing", 0),
        9117: ("replaced", 720870),
        99: ("missing", 0),
        12: ("missing", 0),
        0: ("ok", 0),
    }
    assert found[8507].warning is None
    for concept_id in (5083, 8551, 9117, 99, 12):
        assert names[concept_id] in found[concept_id].warning
        assert str(concept_id) in found[concept_id].warning
        assert "test release" in found[concept_id].warning


def test_an_index_goes_to_a_spawned_worker_as_a_path(index):
    assert len(pickle.dumps(index)) < 1000
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(ConceptIndex.lookup, index, codings(("ICD10CM", "E11.9"))).result()[
            "target_concept_id"
        ].to_list() == [201826]


def test_without_a_vocabulary_the_next_step_is_named(tmp_path):
    with pytest.raises(VocabularyError, match=r"No vocabulary is loaded.*vocabulary load"):
        open_index(tmp_path)
    with pytest.raises(VocabularyError, match="no concept index of vocabulary release v5"):
        open_index(tmp_path, "v5")


def test_a_wrong_folder_is_refused_before_anything_is_asked_of_the_database(tmp_path):
    nowhere = {"vocab_schema": "vocab", "etl_schema": "etl"}
    with pytest.raises(VocabularyError, match="is not a folder"):
        load_vocabulary("postgresql://nowhere/none", tmp_path / "missing", **nowhere)
    (tmp_path / "CONCEPT.csv").write_text("concept_id\n")
    with pytest.raises(VocabularyError, match=r"not a vocabulary download: VOCABULARY\.CSV"):
        load_vocabulary("postgresql://nowhere/none", tmp_path, **nowhere)


def demo_rows(name):
    with (DEMO / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_demonstration_vocabulary_is_in_the_layout_of_a_download():
    for table in cdm.VOCABULARY_TABLES:
        if table == "source_to_concept_map" or table not in cdm.tables_of(CdmVersion.V5_4):
            continue
        with (DEMO / f"{table.upper()}.csv").open(encoding="utf-8") as lines:
            assert lines.readline().rstrip("\n").split("\t") == [field.name for field in cdm.fields(table)]
    release = [row for row in demo_rows("VOCABULARY.csv") if row["vocabulary_id"] == "None"]
    assert release[0]["vocabulary_version"] == "epic-omop demo 1"
    assert "demonstration only" in (DEMO / "NOTICE.md").read_text().lower()
    assert "LOINC® is a registered United States trademark" in " ".join((DEMO / "NOTICE.md").read_text().split())


def test_the_demonstration_vocabulary_keeps_to_what_may_be_given_away():
    vocabularies = Counter(row["vocabulary_id"] for row in demo_rows("CONCEPT.csv"))
    assert vocabularies["SNOMED"] + vocabularies["ICD10CM"] <= 60
    assert "CPT4" not in vocabularies
    assert vocabularies["LOINC"] > 50
    assert vocabularies["RxNorm"] > 30


def test_the_demonstration_vocabulary_agrees_with_itself():
    concepts = {int(row["concept_id"]): row for row in demo_rows("CONCEPT.csv")}
    assert len(concepts) == len(demo_rows("CONCEPT.csv"))
    assert max(concepts) < 2_000_000_000  # ids above are local ones, not OHDSI's
    for field, file in (
        ("vocabulary_id", "VOCABULARY.csv"),
        ("domain_id", "DOMAIN.csv"),
        ("concept_class_id", "CONCEPT_CLASS.csv"),
    ):
        assert {row[field] for row in concepts.values()} <= {row[field] for row in demo_rows(file)}
    relationships = {row["relationship_id"] for row in demo_rows("RELATIONSHIP.csv")}
    mapped = set()
    for row in demo_rows("CONCEPT_RELATIONSHIP.csv"):
        source, target = int(row["concept_id_1"]), int(row["concept_id_2"])
        assert {source, target} <= concepts.keys()
        assert row["relationship_id"] in relationships
        if row["relationship_id"] == "Maps to":
            assert concepts[target]["standard_concept"] == "S"
            mapped.add(source)
    for row in demo_rows("CONCEPT_ANCESTOR.csv"):
        assert {int(row["ancestor_concept_id"]), int(row["descendant_concept_id"])} <= concepts.keys()
    for concept_id, row in concepts.items():
        assert date.fromisoformat(row["valid_start_date"]) <= date.fromisoformat(row["valid_end_date"])
        if row["standard_concept"] == "S" or row["vocabulary_id"] == "ICD10CM":
            assert concept_id in mapped, row["concept_name"]


def test_drugs_of_the_demonstration_vocabulary_lead_to_their_ingredients():
    ingredients = {row["concept_id"] for row in demo_rows("CONCEPT.csv") if row["concept_class_id"] == "Ingredient"}
    below = {
        (row["ancestor_concept_id"], row["descendant_concept_id"])
        for row in demo_rows("CONCEPT_ANCESTOR.csv")
        if row["ancestor_concept_id"] in ingredients
    }
    assert ("1125315", "1127433") in below  # acetaminophen, acetaminophen 325 MG Oral Tablet
