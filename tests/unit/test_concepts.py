"""Choice among codings, with a real concept index of a few rows."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.concepts.code_sets import CodeSets
from pipeline.transform.concepts.index import (
    ANCESTOR_FILE,
    ANCESTOR_SCHEMA,
    CONCEPT_FILE,
    CONCEPT_SCHEMA,
    INDEX_FILE,
    INDEX_SCHEMA,
    ConceptIndex,
)
from pipeline.transform.concepts.resolver import RESOLVED_SCHEMA, ConceptResolver
from pipeline.transform.mapping.code_tables import FallBack
from pipeline.transform.mapping.mappings import load_mappings

#: An OID of a site is longer than the 20 characters of source_vocabulary_id: code_systems.csv gives it a short name.
EPIC_OID = "urn:oid:1.2.840.114350.1.13.0.1.7.2.696871"
SYSTEMS = {
    "sct": "SNOMED",
    "icd": "ICD10CM",
    "loinc": "LOINC",
    "oid-of-icd": "ICD10CM",
    EPIC_OID: "EPIC DIAGNOSES 12345",
    "ucum": "UCUM",
    "icd9": "ICD9CM",
    "cdt": "CDT",
    "ndc": "NDC",
}
FORMS = load_mappings(MAPPINGS_FOLDER).code_forms
FALL_BACKS = {"icd9": FallBack("ICD9Proc", frozenset({"procedure"})), "cdt": FallBack("HCPCS")}
PRIORITIES = {"condition": ("SNOMED", "ICD10CM"), "lab": ("LOINC", "SNOMED"), "unit": ("UCUM",)}

#: vocabulary, code, source concept, pair number, target, its domain, value
ROWS = [
    ("SNOMED", "parent", 1, 1, 1, "Condition", None),
    ("SNOMED", "child", 2, 1, 2, "Condition", None),
    ("SNOMED", "other", 3, 1, 3, "Condition", None),
    ("SNOMED", "retired", 4, 1, None, None, None),
    ("ICD10CM", "A00.1", 11, 1, 2, "Condition", None),
    ("ICD10CM", "TWO", 12, 1, 2, "Condition", None),
    ("ICD10CM", "TWO", 12, 2, 3, "Observation", 9),
    ("ICD10CM", "NONE", 13, 1, None, None, None),
    ("LOINC", "718-7", 21, 1, 21, "Measurement", None),
    ("urn:local", "L1", 0, 1, 3, "Condition", None),
    ("EPIC DIAGNOSES 12345", "121586", 2_000_000_001, 1, 3, "Condition", None),
    ("urn:local", "CUSTOM", 2_000_000_002, 1, 2_000_000_003, "Condition", None),
    ("UCUM", "mm[Hg]", 31, 1, 31, "Unit", None),
    ("UCUM", "Cel", 32, 1, 32, "Unit", None),
    ("UCUM", "C", 33, 1, 33, "Unit", None),
    ("UCUM", "K/uL", 34, 1, None, None, None),
    ("UCUM", "10*3/uL", 35, 1, 35, "Unit", None),
    ("UCUM", "[U]/L", 36, 1, 36, "Unit", None),
    ("urn:units", "42", 0, 1, 32, "Unit", None),
    ("UCUM", "/uL", 37, 1, 37, "Unit", None),
    ("UCUM", "mg{creat}/dL", 38, 1, 38, "Unit", None),
    ("UCUM", "mg/dL", 39, 1, 39, "Unit", None),
    ("ICD9CM", "006.6", 41, 1, 1, "Condition", None),
    ("ICD9CM", "250.00", 42, 1, 2, "Condition", None),
    ("ICD9Proc", "00.66", 43, 1, 3, "Procedure", None),
    ("HCPCS", "D0120", 44, 1, 3, "Procedure", None),
    ("NDC", "00002751001", 45, 1, 1, "Drug", None),
    ("NDC", "00002751002", 46, 1, 1, "Drug", None),
    ("NDC", "00027051002", 47, 1, 2, "Drug", None),
]

ALIASES = {"mmhg": "mm[Hg]", "c": "Cel", "k/ul": "10*3/uL", "gone": "not in the vocabulary"}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    frame = pl.DataFrame(
        [
            (
                vocabulary,
                code,
                source,
                domain,
                None,
                None,
                pair,
                target,
                domain,
                "SNOMED" if target else None,
                value,
                None,
            )
            for vocabulary, code, source, pair, target, domain, value in ROWS
        ],
        schema=dict(INDEX_SCHEMA),
        orient="row",
    )
    frame.sort("vocabulary_id", "concept_code", "pair_number").write_parquet(folder / INDEX_FILE)
    pl.DataFrame(schema=dict(CONCEPT_SCHEMA)).write_parquet(folder / CONCEPT_FILE)
    pl.DataFrame([(1, 2)], schema=dict(ANCESTOR_SCHEMA), orient="row").write_parquet(folder / ANCESTOR_FILE)
    return ConceptIndex(folder, "test release", "hash")


def resolve(index, *concepts, purpose="condition"):
    """For each CodeableConcept: (source code, source concept, targets with their values)."""
    sets = CodeSets()
    numbers = [sets.add_concept(concept) for concept in concepts]
    frame = ConceptResolver(sets, index, SYSTEMS, PRIORITIES, {}, FORMS, FALL_BACKS).resolve(purpose)
    assert frame.schema == pl.Schema(RESOLVED_SCHEMA)
    found = []
    for number in numbers:
        rows = frame.filter(pl.col("code_set") == number).to_dicts()
        targets = [(row["target_concept_id"], row["value_concept_id"]) for row in rows]
        found.append((rows[0]["source_code"], rows[0]["source_concept_id"], targets))
    return found


def coded(*codings, text=None):
    keys = ("system", "code", "userSelected")
    concept = {"coding": [dict(zip(keys, coding, strict=False)) for coding in codings]}
    return {**concept, "text": text} if text else concept


@pytest.mark.parametrize(
    ("codings", "chosen"),
    [
        ([("icd", "A00.1"), ("sct", "other")], "other"),
        ([("sct", "retired"), ("icd", "A00.1")], "A00.1"),
        ([("urn:x", "9", True), ("icd", "A00.1")], "A00.1"),
        ([("urn:local", "L1"), ("icd", "A00.1")], "A00.1"),
        ([("loinc", "718-7"), ("urn:local", "L1")], "L1"),
        ([("sct", "parent"), ("sct", "child")], "child"),
        ([("sct", "parent", True), ("sct", "child")], "child"),
        ([("sct", "child"), ("sct", "other", True)], "other"),
        ([("sct", "other"), ("sct", "child")], "other"),
        ([("sct", "parent"), ("sct", "other"), ("sct", "child")], "other"),
        ([("urn:x", "9"), ("icd", "NONE")], "NONE"),
        ([("urn:x", "9"), ("urn:x", "8", True)], "8"),
        ([("oid-of-icd", "a001")], "a001"),
    ],
)
def test_the_chosen_coding(index, codings, chosen):
    assert resolve(index, coded(*codings))[0][0] == chosen


@pytest.mark.parametrize(
    ("coding", "chosen", "target"),
    [
        ((EPIC_OID, "121586"), 2_000_000_001, 3),
        (("EPIC DIAGNOSES 12345", "121586"), 2_000_000_001, 3),
        (("urn:local", "CUSTOM"), 2_000_000_002, 2_000_000_003),
    ],
)
def test_local_codes_and_custom_concepts(index, coding, chosen, target):
    assert resolve(index, coded(coding)) == [(coding[1], chosen, [(target, None)])]


@pytest.mark.parametrize(
    ("quantity", "source", "target"),
    [
        ({"system": "ucum", "code": "mm[Hg]", "unit": "mmHg"}, "mm[Hg]", 31),
        ({"unit": "mmHg"}, "mmHg", 31),
        ({"unit": "MM  HG"}, "MM  HG", 31),
        ({"system": "ucum", "code": "mmHg"}, "mmHg", 31),
        ({"unit": "C"}, "C", 32),
        ({"system": "ucum", "code": "C"}, "C", 33),
        ({"unit": "K/\u00b5L"}, "K/\u00b5L", 35),
        ({"unit": "K/\u03bcL"}, "K/\u03bcL", 35),
        ({"system": "ucum", "code": "K/uL", "unit": "K/uL"}, "K/uL", 35),
        ({"system": "ucum", "code": "U/L", "unit": "units"}, "U/L", 36),
        ({"system": "urn:units", "code": "42", "unit": "degrees"}, "42", 32),
        ({"system": "urn:units", "code": "43", "unit": "mmHg"}, "mmHg", 31),
        ({"system": "urn:units", "code": "43", "unit": "wheelbarrows"}, "43", 0),
        ({"unit": "gone"}, "gone", 0),
    ],
)
def test_a_unit_by_code_by_text_and_by_alias(index, quantity, source, target):
    sets = CodeSets()
    number = sets.add_quantity({"value": 1, **quantity})
    frame = ConceptResolver(sets, index, SYSTEMS, PRIORITIES, ALIASES, FORMS).resolve_single("unit")
    (row,) = frame.filter(pl.col("code_set") == number).to_dicts()
    assert (row["source_code"], row["target_concept_id"]) == (source, target)


def test_the_purpose_decides_the_order_of_vocabularies(index):
    both = coded(("sct", "other"), ("loinc", "718-7"))
    assert resolve(index, both, purpose="condition")[0][0] == "other"
    assert resolve(index, both, purpose="lab")[0][0] == "718-7"


def test_one_row_for_each_standard_concept_with_its_value(index):
    assert resolve(index, coded(("icd", "TWO"))) == [("TWO", 12, [(2, None), (3, 9)])]


def test_a_single_concept_is_the_first(index):
    sets = CodeSets()
    sets.add_concept(coded(("icd", "TWO")))
    resolver = ConceptResolver(sets, index, SYSTEMS, PRIORITIES)
    assert resolver.resolve_single("condition")["target_concept_id"].to_list() == [2]


@pytest.mark.parametrize(
    ("concept", "expected"),
    [
        (coded(("icd", "NONE")), ("NONE", 13, [(0, None)])),
        (coded(("icd", "unknown")), ("unknown", 0, [(0, None)])),
        (coded((None, "718-7")), ("718-7", 0, [(0, None)])),
        (coded(("urn:unknown", "x")), ("x", 0, [(0, None)])),
        ({"text": "only a text"}, (None, 0, [(0, None)])),
    ],
)
def test_what_does_not_resolve_is_0_with_its_source(index, concept, expected):
    assert resolve(index, concept) == [expected]


def test_code_sets_of_later_chunks_are_added_without_losing_the_former(index):
    sets = CodeSets()
    resolver = ConceptResolver(sets, index, SYSTEMS, PRIORITIES)
    assert resolver.resolve("condition").is_empty()
    sets.add_concept(coded(("sct", "child")))
    assert resolver.resolve("condition")["target_concept_id"].to_list() == [2]
    sets.add_concept(coded(("sct", "other")))
    sets.add_concept(coded(("icd", "TWO")))
    assert resolver.resolve("condition")["target_concept_id"].to_list() == [2, 3, 2, 3]
    assert resolver.resolve("condition")["code_set"].to_list() == [0, 1, 2, 2]


ANY_CODING = st.tuples(
    st.sampled_from(["sct", "icd", "loinc", "urn:local", "urn:x", None]),
    st.sampled_from([row[1] for row in ROWS] + ["nothing"]),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(codings=st.lists(ANY_CODING, min_size=1, max_size=5))
def test_one_coding_that_resolves_is_enough(index, codings):
    known = {(row[0], row[1]) for row in ROWS if row[4]}
    vocabularies = {**SYSTEMS, "urn:local": "urn:local"}
    resolves = any((vocabularies.get(system), code) in known for system, code, _ in codings)
    source, _, targets = resolve(index, coded(*codings))[0]
    assert source in {code for _, code, _ in codings}
    assert (targets != [(0, None)]) == resolves


@settings(max_examples=20, deadline=None)
@given(
    concepts=st.lists(
        st.lists(ANY_CODING, min_size=1, max_size=3).map(lambda codings: coded(*codings)), min_size=1, max_size=6
    )
)
def test_what_is_resolved_together_is_resolved_as_alone(index, concepts):
    assert resolve(index, *concepts) == [resolve(index, concept)[0] for concept in concepts]


class CountingIndex(ConceptIndex):
    """The real index, which notes what it is asked."""

    asked: list[tuple[str, str]]

    def lookup(self, codings: pl.DataFrame) -> pl.DataFrame:
        self.asked.extend(codings.select("vocabulary_id", "concept_code").rows())
        return super().lookup(codings)


def test_the_index_is_asked_once_for_a_coding(index):
    """Each question reads a file of millions of rows; later code sets and other purposes have the same codings."""
    counting = CountingIndex(index.folder, index.release, index.content_hash)
    object.__setattr__(counting, "asked", [])
    sets = CodeSets()
    resolver = ConceptResolver(sets, counting, SYSTEMS, PRIORITIES)
    found = []
    for text in ("first", "second"):
        number = sets.add_concept(
            {"coding": [{"system": "icd", "code": "TWO"}, {"system": "sct", "code": "gone"}], "text": text}
        )
        for purpose in ("condition", "lab"):
            rows = resolver.resolve(purpose).filter(pl.col("code_set") == number)
            found.append(rows.select("target_concept_id", "value_concept_id").rows())
            single = resolver.resolve_single(purpose)
            assert single["code_set"].to_list() == list(range(number + 1))
            assert single["target_concept_id"].to_list() == [2] * (number + 1)
    assert found == [[(2, None), (3, 9)]] * 4
    assert sorted(counting.asked) == [("ICD10CM", "TWO"), ("SNOMED", "gone")]


@pytest.mark.parametrize(
    ("coding", "purpose", "target"),
    [
        (("icd9", "0066"), "procedure", 3),
        (("icd9", "00.66"), "procedure", 3),
        (("icd9", "006.6"), "procedure", 1),
        (("icd9", "0066"), "condition", 1),
        (("icd9", "00.66"), "condition", 0),
        (("icd9", " 25000"), "procedure", 2),
        (("cdt", "d0120"), "procedure", 3),
        (("ndc", "0002751001"), "drug", 1),
        (("ndc", "0002751002"), "drug", 0),
        (("ndc", "00002-*751-02"), "drug", 0),
    ],
)
def test_where_and_how_a_code_is_looked_up(index, coding, purpose, target):
    [(_, _, targets)] = resolve(index, coded(coding), purpose=purpose)
    assert [concept_id for concept_id, _ in targets] == [target]


def test_a_code_that_may_be_several_is_marked_and_keeps_its_source_code(index):
    sets = CodeSets()
    for code in ("0002751002", "0002751001", "gone"):
        sets.add_concept(coded(("ndc", code)))
    found = ConceptResolver(sets, index, SYSTEMS, PRIORITIES, {}, FORMS).resolve("drug")
    assert found.select("source_code", "target_concept_id", "source_concept_id", "is_ambiguous").rows() == [
        ("0002751002", 0, 0, True),
        ("0002751001", 1, 45, False),
        ("gone", 0, 0, False),
    ]
