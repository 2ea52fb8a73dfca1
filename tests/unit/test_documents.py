"""The documentation that the FHIR-to-OMOP guide asks for: it is there, and says what the code does."""

from __future__ import annotations

import csv
import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from omop_schema.cdm import CDM_TABLES
from pipeline.core.mapping_options import MappingOptions, resources_of
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.quality.fixed_maps import FIXED_MAPS_RELEASE, FROM_THE_GUIDE
from pipeline.quality.manifest import manifest
from pipeline.transform.column_types import CONVERTED_TYPES
from pipeline.transform.mapping.mappings import (
    ConceptRule,
    ResourceMapping,
    StatusFilter,
    TableRule,
    ViewMapping,
    load_mappings,
)
from pipeline.transform.mapping_check.check import check_mappings
from pipeline.transform.rules import RULES
from pipeline.transform.specialties import NPI
from tests.golden.test_golden import CASES
from tests.requirement_results import marked_tests
from tools import conformance
from tools import documents as generated
from tools.conformance import LISTS, Requirement, load_requirements, merged, render
from tools.golden_cases import golden_cases

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "mapping.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAPPINGS = load_mappings(MAPPINGS_FOLDER)
REQUIREMENTS, THEMIS = (load_requirements(one.file) for one in LISTS)
#: As the page has them.
LISTED = list(zip(LISTS, (REQUIREMENTS, THEMIS), strict=True))
MARKED = marked_tests(ROOT / "tests")


@cache
def documents():
    """The pages that are made, once."""
    return generated.documents()


def section(title):
    """The text under a heading of docs/mapping.md, up to the next of its level or above."""
    match = re.search(rf"^(#+) {re.escape(title)}.*?$(.*?)(?=^#{{1,3}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/mapping.md has no section {title}"
    return match[2]


# --- pages that are made -------------------------------------------------------------------------------------------


@pytest.mark.requirement("f2o-061", "f2o-082", "f2o-093")
def test_pages_that_are_made_are_current():
    for name, content in documents().items():
        assert (DOCS / name).read_text(encoding="utf-8") == content, f"docs/{name} is old: run `make documents`"


def test_the_page_on_writing_names_every_key_rule_and_type():
    page = documents()["writing-a-mapping.md"]
    for model in (ResourceMapping, ViewMapping, StatusFilter, TableRule, ConceptRule):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no description"
            assert name == "definition" or f"| `{name}` |" in page
    for name in RULES:
        assert f"\n#### {name}\n" in page
    for name in CONVERTED_TYPES:
        assert f"| `{name}` |" in page
    for text in (README, PAGE):
        assert "writing-a-mapping.md" in text


@pytest.mark.requirement("f2o-092")
def test_every_option_is_documented_and_changes_a_resource_that_is_mapped():
    page = documents()["mapping-options.md"]
    for name, field in MappingOptions.model_fields.items():
        assert f"| `{name}` | `{field.default}`" in page
        assert field.description
        assert resources_of(field)


def test_the_conformance_page_is_current():
    """Made of the statements and of the tests that are marked: all of them have passed, else it is not committed."""
    expected = render(LISTED, merged([MARKED]))
    page = (DOCS / "conformance.md").read_text(encoding="utf-8")
    assert page == expected, "docs/conformance.md is old: run `make conformance`"


LINE = 120


def long_lines(text):
    """(number, length) of lines of running text that are too long; tables, code and names of tests stay."""
    in_code = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        is_of_tests = re.fullmatch(r"- `\S+`: \w+", line)
        if len(line) > LINE and not in_code and not line.lstrip().startswith("|") and not is_of_tests:
            yield number, len(line)


def test_lines_of_documents_are_short():
    pages = [*sorted(DOCS.rglob("*.md")), *(page for page in sorted(ROOT.glob("*.md")) if page.name != "CHANGELOG.md")]
    assert len(pages) > 20
    found = {page.relative_to(ROOT).as_posix(): list(long_lines(page.read_text(encoding="utf-8"))) for page in pages}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_long_lines_are_found():
    words = "word " * 30
    assert list(long_lines(f"short\n{words}\n")) == [(2, 150)]
    assert list(long_lines(f"| {words} |\n```\n{words}\n```\n")) == []


# --- statements ----------------------------------------------------------------------------------------------------


def test_all_statements_are_answered_and_tests_name_no_others():
    guide, themis = [one.id for one in REQUIREMENTS], [one.id for one in THEMIS]
    assert len(guide) == len(set(guide)) == 56
    assert guide == sorted(guide)
    assert {one.status for one in REQUIREMENTS} <= {"met", "departed", "not_applicable"}, "the guide's are all decided"
    assert len(themis) == len(set(themis)) == 112
    assert {one.level for one in THEMIS} == {"required", "recommended", "optional"}
    assert all(one.id.startswith("themis-") and one.table and (one.page or one.issue_number) for one in THEMIS)
    assert set(MARKED) <= {*guide, *themis}, "tests carry ids that no list has"


@pytest.mark.parametrize(
    "requirement", [one for one in (*REQUIREMENTS, *THEMIS) if one.status == "met"], ids=lambda one: one.id
)
def test_what_is_met_is_shown_by_a_test(requirement):
    assert MARKED.get(requirement.id), f"no test has the marker requirement({requirement.id!r})"


def test_the_page_shows_the_evidence_of_both_lists():
    """Name and outcome of the test, what was given, which rows came out; of a met statement without, that it has none."""
    guide = [Requirement(id="f2o-001", level="SHALL", asks="This.", status="met", why="So.")]
    themis = [
        Requirement(
            id="themis-a",
            page="death/a.md",
            issue=7,
            table="death",
            field="death_date",
            level="required",
            asks="That.",
            status="met",
            why="So.",
        ),
        Requirement(id="themis-b", table="death", level="optional", asks="Or that.", status="met", why="So."),
        Requirement(id="themis-c", table="death", level="optional", asks="Or so.", status="open", why="Not yet."),
    ]
    case = "Patient/death/deceased-year"
    of_maps = "unit/test_documents.py::test_every_fixed_map_is_identified_with_its_origin_and_release"
    assert case in golden_cases()
    results = {
        "f2o-001": {of_maps: "passed"},
        "themis-a": {f"golden case {case}": "passed"},
        "themis-b": {"unit/test_a.py::test_x": "failed"},
    }
    page = render(list(zip(LISTS, (guide, themis), strict=True)), results)
    assert "| [Themis](#themis) | 3 | 2 | 1 | 0 | 1 | 0 |" in page
    assert page.index("### f2o-001: met") < page.index("### themis-a: met") < page.index("### themis-c: **open**")
    found = {part.split(":")[0]: part for part in page.split("\n### ")}
    assert f"- `golden case {case}`: passed\n  - {golden_cases()[case].title[:40]}" in found["themis-a"]
    assert re.search(r"given: `Patient \(.*deceasedDateTime \d{4}", found["themis-a"])
    assert re.search(r"rows: `death \(death_date \d{4}-12-31\)", found["themis-a"]), "the statement's own column"
    assert (
        "- `unit/test_documents.py::test_every_fixed_map_is_identified_with_its_origin_and_release`: passed\n  - And the"
        in page
    )
    assert "About `death.death_date`, page `death/a.md`, issue 7." in found["themis-a"]
    assert ["No evidence" in found[name] for name in ("f2o-001", "themis-a", "themis-b", "themis-c")] == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.requirement("f2o-092")
def test_departures_are_told_with_their_reason():
    told = section("Departures from the guide and its maps")
    for requirement in REQUIREMENTS:
        if requirement.status == "departed" and requirement.id not in {"f2o-120", "f2o-121"}:  # of a suite, not of maps
            assert requirement.id in told
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines() if line.startswith("| ")
    ]
    assert all(len(line) == 3 and all(line) for line in lines), "what, what the guide has, and what is here and why"
    for departure in (
        *(
            "dataAbsentReason",
            "resolved",
            "OBSENC",
            "userSelected",
            "intent",
            "date of an allergy",
            "verbatim_end_date",
        ),
        *("statusReason", "Still Patient", "person_source_value", "condition_source_value", "types of records"),
    ):
        assert any(departure in line[0] for line in lines), departure


@pytest.mark.requirement("f2o-060", "f2o-092")
def test_every_status_and_intent_that_the_guide_does_not_admit_and_that_is_kept_is_told():
    """Of resources that are events: a kept value of what is not realised is a line, with the option that gives it up."""
    not_realised = {
        *("stopped", "on-hold", "cancelled", "not-done", "not-taken", "draft", "intended", "planned", "preparation"),
        *("proposal", "plan", "option", "order", "original-order", "reflex-order", "filler-order", "entered-in-error"),
        *("declined", "revoked", "registered", "refuted"),
    }
    with (MAPPINGS_FOLDER / "modifier_elements.csv").open(encoding="utf-8", newline="") as stream:
        kept = [
            (line["element"].partition(".")[0], line["value"])
            for line in csv.DictReader(stream)
            if line["element"].endswith((".status", ".intent"))
            and line["value"] in not_realised
            and line["does"] == "kept"
        ]
    events = [
        (name, value) for name, value in kept if any(view.kind == "event" for view in MAPPINGS.resources[name].views)
    ]
    assert ("MedicationRequest", "order") in events
    told = [line for line in section("Departures from the guide and its maps").splitlines() if "f2o-060" in line]
    [why] = [requirement.why for requirement in REQUIREMENTS if requirement.id == "f2o-060"]
    for name, value in events:
        assert any(value in line for line in told), f"{name} of {value} makes rows"
        assert value in why
    options = {name for line in told for name in re.findall(r"`(\w+): \w+`", line)}
    assert "medication_requests" in options
    assert options <= set(MappingOptions.model_fields)


@pytest.mark.requirement("f2o-038", "f2o-093")
def test_every_fixed_map_is_identified_with_its_origin_and_release():
    """And the constants and fixed concepts of mappings: docs/mapping.md, in the manifest for machines."""
    assert set(FROM_THE_GUIDE) <= set(MAPPINGS.value_maps)
    fixed = manifest(MAPPINGS)["output"]["fixed_maps"]
    assert set(fixed["maps"]) == set(MAPPINGS.value_maps)
    assert fixed["maps"]["encounter_class"].startswith("the guide's EncounterClass")
    assert fixed["written_for_vocabulary_release"] == FIXED_MAPS_RELEASE
    for text in (section("Fixed maps"), documents()["mapping-tables.md"]):
        assert FIXED_MAPS_RELEASE in " ".join(text.split())


def test_results_of_several_runs_and_parameters_are_put_together():
    first = {"f2o-001": {"tests/unit/test_a.py::test_x[1]": "passed", "tests/unit/test_a.py::test_x[2]": "failed"}}
    second = {"f2o-001": {"tests/golden/test_golden.py::test_golden[A/b/c]": "skipped"}}
    assert merged([first, second]) == {"f2o-001": {"unit/test_a.py::test_x": "failed", "golden case A/b/c": "skipped"}}


def test_the_page_is_written_from_result_files(tmp_path, capsys):
    file, page = tmp_path / "results.json", tmp_path / "page.md"
    file.write_text(json.dumps({"f2o-001": {"tests/unit/test_a.py::test_x": "passed"}}))
    assert conformance.main(["--results", str(file), "--out", str(page)]) == 0
    assert "- `unit/test_a.py::test_x`: passed" in page.read_text()
    file.write_text(json.dumps({"f2o-001": {"tests/unit/test_a.py::test_x": "failed"}}))
    assert conformance.main(["--results", str(file), "--out", str(page)]) == 1
    assert conformance.main(["--results", str(tmp_path / "missing.json"), "--out", str(page)]) == 2
    assert "Error: " in capsys.readouterr().err


# --- declarations --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("f2o-002", "f2o-004", "f2o-010")
def test_versions_profiles_and_use_cases_are_declared():
    declared = manifest(MAPPINGS)
    assert declared["input"]["fhir_version"] == "4.0.1"
    assert declared["use_cases"]
    assert {resource["type"] for resource in declared["input"]["resources"]} == set(MAPPINGS.resources)
    assert all(resource["profiles"][0].endswith(resource["type"]) for resource in declared["input"]["resources"])
    told = section("Declarations")
    for words in ("R4, 4.0.1", "Use cases", "Profiles", "CDM 5.4"):
        assert words in told


@pytest.mark.requirement("f2o-003", "f2o-122")
def test_the_manifest_says_of_every_table_how_far_it_is_filled():
    tables = manifest(MAPPINGS)["output"]["tables"]
    assert set(tables) == set(CDM_TABLES)
    assert {one["populated"] for one in tables.values()} == {"full", "partial", "none"}
    assert tables["condition_occurrence"] == {
        "populated": "full",
        "from": tables["condition_occurrence"]["from"],
        "from_others_by_domain": True,
    }
    assert "Patient" in tables["person"]["from"]
    assert "person_source_value" in tables["person"]["columns_left_empty"], "it would hold an identifier"
    assert tables["cohort"] == {"populated": "none"}
    for resource in manifest(MAPPINGS)["input"]["resources"]:
        for table in resource["tables"]:
            assert resource["type"] in tables[table]["from"]


def test_no_column_is_said_to_be_empty_that_a_golden_case_fills():
    """Of the cases without settings of their own: the manifest is that of the mappings as they are."""
    tables = manifest(MAPPINGS)["output"]["tables"]
    wrong = set()
    for case in CASES:
        if not case.document.keys() & {"site", "instance", "values", "mappings"}:
            for table, rows in (case.document.get("rows") or {}).items():
                filled = {name for row in rows for name, value in row.items() if value not in (None, 0, "0")}
                wrong |= {f"{table}.{name}" for name in filled & set(tables[table].get("columns_left_empty", ()))}
    assert sorted(wrong) == []


def test_a_sites_manifest_has_its_options_and_own_mappings(tmp_path):
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "unmapped_types.csv").write_text("resource_type,reason\nCoverage,elsewhere\n")
    found = manifest(load_mappings(MAPPINGS_FOLDER, "north", MappingOptions(), tmp_path), "north")
    assert found["site"] == "north"
    assert found["input"]["excluded_types"]["Coverage"] == "elsewhere"
    assert found["output"]["tables"]["payer_plan_period"] == {"populated": "none"}


@pytest.mark.requirement("f2o-025", "f2o-026")
def test_every_identifier_system_that_a_mapping_reads_has_its_strategy():
    told = section("Identifiers and privacy")
    read = {
        system
        for file in MAPPINGS_FOLDER.glob("*.yaml")
        for system in re.findall(r"identifier\.where\(system = '([^']+)'", file.read_text(encoding="utf-8"))
    }
    read |= {
        {"npi": NPI}[view.column_types[name] or ""]
        for mapping in load_mappings(MAPPINGS_FOLDER).resources.values()
        for view in mapping.views
        for name, path in view.column_paths.items()
        if path.startswith("identifier")
    }
    assert read == {"http://hl7.org/fhir/sid/us-npi"}, "another identifier is read: assess it in docs/mapping.md"
    assert all(system in told for system in read)
    for strategy in ("surrogate key", "stored outside the CDM", "excluded"):
        assert strategy in told


@pytest.mark.requirement("f2o-025", "f2o-132")
def test_there_is_a_form_for_what_only_a_site_can_say():
    form = section("To be filled in by each site")
    for words in ("Legal instrument", "retention", "Privacy framework", "identifier system"):
        assert words in form


@pytest.mark.requirement("f2o-034")
def test_the_order_of_choice_is_told():
    told = section("Choice among codings")
    places = [
        told.index(words)
        for words in ("standard concept before", "vocabulary's place", "more specific", "`userSelected`; the")
    ]
    assert places == sorted(places)


@pytest.mark.requirement("f2o-072", "f2o-080", "f2o-082")
def test_time_zone_losses_and_limits_are_told():
    assert "EPIC_OMOP_TIME_ZONE" in section("Declarations")
    assert len(re.findall(r"^- ", section("What is lost"), re.MULTILINE)) >= 8
    assert len(re.findall(r"^- ", section("Limits"), re.MULTILINE)) >= 3
    assert "| 0.1.0 |" in section("Changes of filters")
    assert "etl.row_issue" in section("Imputed dates")


def test_the_example_of_a_sites_own_mapping_works(tmp_path):
    example = re.search(r"```yaml\n# mappings/sites/north/Observation.yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "Observation.yaml").write_text(example[1])
    assert yaml.safe_load(example[1])["views"]
    assert check_mappings(MAPPINGS_FOLDER, "north", tmp_path) == []
    found = load_mappings(MAPPINGS_FOLDER, "north", None, tmp_path).resources["Observation"]
    assert [view.name for view in found.views][:2] == ["observation", "value"]
    assert "component" not in {view.name for view in found.views}
    assert "preliminary" in found.status.keep


# --- rules of Epic -------------------------------------------------------------------------------------------------

CITED = re.compile(r"\b[Rr]ules? (\d+)((?:(?:, | and | to )\d+)*)")


def cited_rules(text):
    """Numbers of the rules that a text cites, also over the end of a line."""
    text = re.sub(r"\n\s*(#:?\s*)?", " ", text)
    return {int(number) for match in CITED.finditer(text) for number in re.findall(r"\d+", match[0])}


def test_rules_of_epic_that_the_code_cites_are_in_the_documents():
    rules = [
        int(number) for number in re.findall(r"^(\d+)\. ", (DOCS / "epic-rules.md").read_text("utf-8"), re.MULTILINE)
    ]
    assert rules == list(range(1, len(rules) + 1))
    cited = {
        number: path.relative_to(ROOT).as_posix()
        for folder in ("pipeline", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number in cited_rules(path.read_text(encoding="utf-8"))
    }
    assert len(cited) > 10
    assert {number: path for number, path in cited.items() if number not in rules} == {}


def test_files_that_the_rules_name_are_there():
    page = (DOCS / "epic-rules.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:extract|load|fhir|transform|landing)/[\w/.]*)`", page)
    assert len(names) > 10
    assert [name for name in names if not (ROOT / "pipeline" / name).exists()] == []


@pytest.mark.parametrize("text", ["# (rule 7)", "Rule 16: so", "rules 2 and 16", "# as\n    # rule\n    # 16 has it"])
def test_citations_are_found(text):
    assert cited_rules(text) & {7, 16}
