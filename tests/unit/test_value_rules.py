"""Rules about numbers: what may be in their files, a site's over the shared ones, and what numbers they find."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.mapping.mappings import has_numbers, load_mappings, read_mappings
from pipeline.transform.mapping.value_rules import Conversion, Limit
from pipeline.transform.mapping_check.check import check_mappings
from pipeline.transform.mapping_check.concepts import demo_concepts
from pipeline.transform.value_checks import ValueChecks

DEMO = demo_concepts(MAPPINGS_FOLDER / "demo_vocabulary")
LIMITS = "concept,domain,unit,low,high,negative_allowed,action,name"
UNITS = "concept,from,to,factor,offset,name"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "mappings"
    shutil.copytree(MAPPINGS_FOLDER / "concept_maps", target / "concept_maps")
    shutil.copy(MAPPINGS_FOLDER / "Observation.yaml", target)
    for name in ("plausibility", "units"):
        (target / name).mkdir()
    return target


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("plausibility", "LOINC:8867-4,,/min,0,350,,null,", ""),
        ("plausibility", "LOINC:8867-4,,bpm,0,350,,null,", ""),
        ("plausibility", "4064918,,,0,,,exclude,", ""),
        ("plausibility", ",Observation,,,,no,keep,", ""),
        ("plausibility", "LOINC:1925-7,,,,,yes,,", ""),
        ("plausibility", "LOINC:1925-7,,,-40,40,,null,", ""),
        ("plausibility", ",,,0,1,,null,", "needs a concept or a domain"),
        ("plausibility", "LOINC:8867-4,Measurement,,0,1,,null,", "needs a concept or a domain, and not both"),
        ("plausibility", "heart rate,,,0,1,,null,", "concept must be an id or VOCABULARY:code, not 'heart rate'"),
        ("plausibility", "LOINC:8867-5,,,0,1,,null,", "LOINC:8867-5 is no LOINC code: its check digit does not fit"),
        ("plausibility", ",Drug,,0,1,,null,", "domain must be Measurement or Observation, not 'Drug'"),
        ("plausibility", "LOINC:8867-4,,,low,1,,null,", "low must be a number, not 'low'"),
        ("plausibility", "LOINC:8867-4,,,0,nan,,null,", "high must be a number, not 'nan'"),
        ("plausibility", "LOINC:8867-4,,,0,inf,,null,", "high must be a number, not 'inf'"),
        ("plausibility", "LOINC:8867-4,,,5,1,,null,", "low 5 is above high 1"),
        ("plausibility", "LOINC:8867-4,,,,,,null,", "says nothing: low, high or negative_allowed must be given"),
        ("plausibility", "LOINC:8867-4,,,-5,1,no,null,", "low -5 is negative, although negative_allowed is no"),
        ("plausibility", "LOINC:8867-4,,,0,1,maybe,null,", "negative_allowed must be yes or no, not 'maybe'"),
        ("plausibility", "LOINC:8867-4,,,0,1,,delete,", "action must be one of keep, null, exclude, not 'delete'"),
        ("plausibility", "LOINC:8867-4,,,0,1,,,", "action must be one of keep, null, exclude, not ''"),
        ("plausibility", "LOINC:8867-4,,wheelbarrows,0,1,,null,", "unit: the unit 'wheelbarrows' is not a Standard one"),
        ("plausibility", "8507,,,0,1,,null,", "concept 8507 is of domain Gender: its table has no numbers"),
        ("plausibility", "LOINC:8867-4,,,0,1", "needs one value for each of the columns"),
        ("units", "LOINC:8310-5,[degF],Cel,0.5555555555555556,-17.77777777777778,", ""),
        ("units", "LOINC:8310-5,degF,Cel,0.5555555555555556,-17.77777777777778,", ""),
        ("units", "LOINC:8310-5,[degF],Cel,five,,", "factor must be a number, not 'five'"),
        ("units", "LOINC:8310-5,[degF],Cel,0,,", "factor must be a number above 0"),
        ("units", "LOINC:8310-5,[degF],Cel,-1,,", "factor must be a number above 0"),
        ("units", "LOINC:8310-5,[degF],Cel,1,x,", "offset must be a number, not 'x'"),
        ("units", "LOINC:8310-5,Cel,degC,1,,", "from and to are the same unit, Cel"),
        ("units", "LOINC:8310-5,,Cel,1,,", "from is empty"),
        ("units", "LOINC:8310-5,furlong,Cel,1,,", "from: the unit 'furlong' is not a Standard one"),
    ],
)  # fmt: skip
def test_rows_of_rules(folder: Path, kind: str, row: str, words: str) -> None:
    (folder / kind / "own.csv").write_text(f"{LIMITS if kind == 'plausibility' else UNITS}\n{row}\n")
    found = [(Path(one.file).name, one.line, one.message) for one in check_mappings(folder, concepts=DEMO)]
    assert [place for *place, _ in found] == ([["own.csv", 2]] if words else [])
    assert not words or words in found[0][2]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a,condition_occurrence,condition_concept_id|condition_start_date,32840|32827", ""),
        ("a,measurement,measurement_concept_id|measurement_date|value_as_number,", ""),
        ("a,person,person_id,", "there is no table of events 'person'"),
        ("a,condition_occurrence,condition_concept_id|onset,", "condition_occurrence has no column 'onset'"),
        ("a,condition_occurrence,condition_start_date,", "same must hold condition_concept_id"),
        ("a,condition_occurrence,condition_concept_id|condition_concept_id,", "same names a column twice"),
        ("a,condition_occurrence,condition_concept_id,problem list", "types must be concept ids joined by |"),
        ("a,condition_occurrence,condition_concept_id,32840", "types must be two or more"),
        ("a,condition_occurrence,condition_concept_id|condition_type_concept_id,32840|32827", "types must be two or more"),
        ("a,condition_occurrence,condition_concept_id,32840|8507", "concept 8507 is of domain Gender, not Type Concept"),
        (",condition_occurrence,condition_concept_id,", "name is empty"),
    ],
)  # fmt: skip
def test_rows_of_rules_about_duplicates(folder: Path, row: str, words: str) -> None:
    (folder / "duplicates").mkdir()
    (folder / "duplicates" / "own.csv").write_text(f"name,table,same,types\n{row}\n")
    found = [(Path(one.file).name, one.line, one.message) for one in check_mappings(folder, concepts=DEMO)]
    assert [place for *place, _ in found] == ([["own.csv", 2]] if words else [])
    assert not words or words in found[0][2]


def test_a_rule_is_there_once_in_all_files(folder: Path) -> None:
    row = "LOINC:8867-4,,/min,0,350,,null,\n"
    (folder / "plausibility" / "a.csv").write_text(f"{LIMITS}\n{row}")
    (folder / "plausibility" / "b.csv").write_text(f"{LIMITS}\n{row}{row}")
    first = "LOINC:8867-4 /min is there twice, first in a.csv, line 2"
    found = [(Path(one.file).name, one.line, one.message) for one in check_mappings(folder, concepts=DEMO)]
    assert found == [("b.csv", 2, first), ("b.csv", 3, first)]


@pytest.mark.parametrize("column", ["hihg", "unit_concept_id"])
def test_a_column_that_nothing_reads_is_a_problem(folder: Path, column: str) -> None:
    (folder / "plausibility" / "a.csv").write_text(f"concept,low,{column}\nLOINC:8867-4,1,2\n")
    (problem,) = check_mappings(folder, concepts=DEMO)
    assert (problem.line, problem.message.partition(";")[0]) == (1, f"has no use for the column '{column}'")


def test_a_site_replaces_rules_and_adds_others(folder: Path) -> None:
    (folder / "plausibility" / "a.csv").write_text(
        f"{LIMITS}\nLOINC:8867-4,,/min,0,350,,null,\nLOINC:9279-1,,/min,0,120,,null,\n"
    )
    own = folder / "sites" / "north" / "plausibility"
    own.mkdir(parents=True)
    (own / "mine.csv").write_text(f"{LIMITS}\nLOINC:8867-4,,/min,20,300,,exclude,\nLOINC:8302-2,,cm,30,250,,keep,\n")
    found = {limit.concept: (limit.low, limit.high, limit.action) for limit in load_mappings(folder, "north").limits}
    assert found == {
        "LOINC:8867-4": (20, 300, "exclude"),
        "LOINC:9279-1": (0, 120, "null"),
        "LOINC:8302-2": (30, 250, "keep"),
    }
    assert len(load_mappings(folder).limits) == 2
    (own / "notes.txt").write_text("mine")
    (problem,) = read_mappings(folder, "north").problems
    assert (Path(problem.file).name, problem.message) == ("notes.txt", "is not a file of rules (*.csv)")


def test_a_concept_has_one_standard_unit(folder: Path) -> None:
    """Two would send numbers of each unit into the other."""
    (folder / "units" / "a.csv").write_text(
        f"{UNITS}\nLOINC:8310-5,[degF],Cel,1,,\nLOINC:8310-5,Cel,[degF],1,,\nLOINC:8302-2,[in_i],cm,2.54,,\n"
    )
    (problem,) = check_mappings(folder, concepts=DEMO)
    assert (problem.line, problem.message.rpartition(": ")[2]) == (3, "a concept has one standard unit")


def test_a_site_chooses_another_standard_unit(folder: Path) -> None:
    """The shared conversions of the concept go, or numbers would be sent both ways."""
    (folder / "units" / "a.csv").write_text(
        f"{UNITS}\nLOINC:8310-5,[degF],Cel,1,,\nLOINC:8302-2,[in_i],cm,2.54,,\nLOINC:8302-2,m,cm,100,,\n"
    )
    own = folder / "sites" / "north" / "units"
    own.mkdir(parents=True)
    (own / "mine.csv").write_text(f"{UNITS}\nLOINC:8310-5,Cel,[degF],1.8,32,\nLOINC:8302-2,[in_i],cm,2.5,,\n")
    mappings = load_mappings(folder, "north")
    assert {(one.concept, one.source, one.target, one.factor) for one in mappings.conversions} == {
        ("LOINC:8310-5", "Cel", "[degF]", 1.8),
        ("LOINC:8302-2", "[in_i]", "cm", 2.5),
        ("LOINC:8302-2", "m", "cm", 100),
    }


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_files_of_spreadsheets_are_read(folder: Path, line_end: str) -> None:
    """They begin with a byte order mark."""
    text = line_end.join([LIMITS, "LOINC:8867-4,,/min,0,350,,null,", ""])
    (folder / "plausibility" / "a.csv").write_bytes(text.encode("utf-8-sig"))
    assert [limit.high for limit in load_mappings(folder).limits] == [350]


def test_a_rule_that_changes_maps_the_types_with_numbers_again(tmp_path: Path) -> None:
    before = load_mappings(MAPPINGS_FOLDER)
    for kind, rows in (
        ("plausibility", f"{LIMITS}\nLOINC:8867-4,,/min,20,300,,exclude,\n"),
        ("units", f"{UNITS}\nLOINC:8867-4,Cel,/min,2,,\n"),
    ):
        (tmp_path / kind / "north" / kind).mkdir(parents=True)
        (tmp_path / kind / "north" / kind / "own.csv").write_text(rows)
        after = load_mappings(MAPPINGS_FOLDER, "north", None, tmp_path / kind)
        changed = {name for name in before.resources if before.fingerprint(name) != after.fingerprint(name)}
        assert changed == {"DiagnosticReport", "Observation", "QuestionnaireResponse"}
    assert changed == {name for name, mapping in before.resources.items() if has_numbers(mapping)}


# --- numbers -------------------------------------------------------------------------------------------------------

KG, LB, G, ANY = 9529, 8739, 8504, None
CONCEPTS = {"LOINC:29463-7": 1, "UCUM:kg": KG, "UCUM:[lb_us]": LB, "UCUM:g": G}
APPLY = MappingOptions(negative_values="apply", plausibility="apply", standard_units="apply")
RULES = [
    Limit(None, "Measurement", None, None, None, False, "null"),
    Limit("LOINC:29463-7", None, "kg", 0.2, 650, None, "null"),
    Limit(2, None, None, None, None, True, "keep"),
    Limit(3, None, None, 10, 20, None, "exclude"),
    Limit(3, None, "kg", 10, 30, None, "keep"),
    Limit("LOINC:1-8", None, None, 0, 1, None, "exclude"),
]
CONVERSIONS = [Conversion("LOINC:29463-7", "[lb_us]", "kg", 0.45359237, 0)]


def checked(rows: list[tuple[int, int | None, float]], options: MappingOptions, table: str = "measurement"):
    """What is left of (concept, unit, number), and what was found of each: row → (finding, action)."""
    frame = pl.DataFrame(
        [(number, number, 1, number, concept, unit, value) for number, (concept, unit, value) in enumerate(rows)],
        schema={
            "surrogate_id": pl.Int64,
            "index": pl.Int32,
            "file_number": pl.Int32,
            "line": pl.Int64,
            "concept_id": pl.Int64,
            "unit_concept_id": pl.Int64,
            "value_as_number": pl.Float64,
        },
        orient="row",
    ).with_columns(pl.lit(table).alias("table"))
    done = ValueChecks.of(RULES, CONVERSIONS, options, CONCEPTS).check(frame)
    left = {row[0]: row[1:] for row in done.rows.select("line", "unit_concept_id", "value_as_number").iter_rows()}
    found = {row[0]: row[1:] for row in done.found.select("line", "finding", "action").iter_rows()}
    assert sorted(done.counts["count"]) == [1] * done.counts.height
    return left, found


def test_the_narrowest_rule_counts() -> None:
    rows = [(1, KG, 700.0), (1, LB, 1500.0), (1, G, 900.0), (2, KG, -1.0), (3, None, 25.0), (3, KG, 25.0), (3, KG, 35.0),
            (4, KG, -1.0), (4, None, 1e9), (3, G, -1.0)]  # fmt: skip
    left, found = checked(rows, APPLY)
    assert found == {
        0: ("value_implausible", "null"),
        1: ("value_implausible", "null"),
        4: ("value_implausible", "exclude"),
        6: ("value_implausible", "keep"),
        7: ("value_negative", "null"),
        9: ("value_negative", "null"),
    }
    assert left[0] == (KG, None)
    assert left[1] == (LB, None)
    assert 4 not in left
    assert left[6] == (KG, 35.0)


@pytest.mark.parametrize("value", ["off", "report"])
def test_without_apply_no_row_changes(value: str) -> None:
    rows = [(1, KG, 700.0), (1, LB, 1500.0), (1, LB, 10.0), (3, None, 25.0), (4, KG, -1.0)]
    options = MappingOptions.model_validate(dict.fromkeys(("negative_values", "plausibility", "standard_units"), value))
    left, found = checked(rows, options)
    assert list(left.values()) == [row[1:] for row in rows]
    assert {action for _, action in found.values()} == ({"reported"} if value == "report" else set())


def test_other_tables_are_left_alone() -> None:
    left, found = checked([(1, KG, -700.0)], APPLY, "drug_exposure")
    assert (left, found) == ({0: (KG, -700.0)}, {})


@given(st.floats(min_value=-1e6, max_value=1e6, allow_nan=False))
def test_a_number_is_judged_alike_in_every_unit(kilograms: float) -> None:
    """Whatever the unit: judged by the limits of the standard one, and within them brought to it."""
    pounds = kilograms / 0.45359237
    left, found = checked([(1, KG, kilograms), (1, LB, pounds)], APPLY)
    edges = any(math.isclose(kilograms, edge, rel_tol=1e-9) for edge in (0.2, 650))
    assert edges or found.get(0) == found.get(1)
    if not found:
        assert left[1][0] == KG
        assert math.isclose(left[1][1], kilograms, rel_tol=1e-11)
