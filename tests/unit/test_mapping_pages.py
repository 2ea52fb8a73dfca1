"""docs/mapping/: what a page says of a resource is what the mapping, its rules and the golden cases have."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from omop_schema.cdm_fields import polars_schema
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.column_types import CONVERTED_TYPES
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.rules import RULES
from tools.column_lines import ColumnLine, column_lines, rule_words, tables_of
from tools.elements import condition_text, elements_of, leaves_at
from tools.golden_cases import golden_cases
from tools.mapping_pages import mapping_pages
from tools.view_examples import examples_of

ROOT = Path(__file__).resolve().parents[2]
MAPPINGS = load_mappings(MAPPINGS_FOLDER)
#: Columns that publication fills from other rows.
LINKED = re.compile(
    r"(preceding_|parent_)?visit_(detail|occurrence)_id|\w*event(_field_concept)?_id|country_concept_id"
)


@cache
def pages():
    return mapping_pages(MAPPINGS)


def lines_of(resource, view_name):
    mapping = MAPPINGS.resources[resource]
    view = next(view for view in mapping.views if view.name == view_name)
    return column_lines(mapping, view, MAPPINGS)


def line_for(resource, view_name, column) -> ColumnLine:
    return next(line for line in lines_of(resource, view_name) if column in line.columns)


# --- paths in words ------------------------------------------------------------------------------------------------

RACE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("birthDate", ("birthDate",)),
        ("onset.ofType(dateTime)", ("onsetDateTime",)),
        ("timing.ofType(Timing).repeat.bounds.ofType(Period).start", ("timingTiming.repeat.boundsPeriod.start",)),
        ("asserter | recorder", ("asserter", "recorder")),
        ("iif(a.exists(), a, iif(b.c.exists(), b.c.first(), d.text))", ("a", "b.c", "d.text")),
        ("item.iif(x.exists(), x.ofType(decimal), value.ofType(Quantity).value)", ("item.xDecimal", "item.valueQuantity.value")),
        (f"extension('{RACE}').extension('ombCategory').value.ofType(Coding)", ("extension us-core-race.ombCategory",)),
        ("range.where(type.empty() or type.coding.where(code = 'x').exists()).first().low", ("range.low",)),
        ("intent = 'proposal' or intent = 'plan'", ("intent",)),
        ("type.where($this = 'a').empty() and category.where($this = 'b').exists()", ("type", "category")),
        ("component.$this", ("component",)),
        ("location.%rowIndex", ("location",)),
        ("$this", ()),
        ("{}", ()),
        ("'1'", ()),
    ],
)  # fmt: skip
def test_paths_are_named_by_their_elements(path, expected):
    assert elements_of(path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("category.coding.where(code = 'LAB' or code = 'laboratory').exists()", "category is LAB or laboratory"),
        ("category.coding.where(code = 'medical-history').exists().not()", "category is not medical-history"),
        ("type.where($this = 'a').empty() and category.where($this = 'b').exists()", "type is not a and category is b"),
        ("intent = 'proposal' or intent = 'plan'", "intent is proposal or plan"),
        ("intent != 'instance-order'", "intent is not instance-order"),
        ("reported.ofType(boolean)", "reportedBoolean is true"),
        ("encounter.exists()", "encounter is there"),
        ("result.exists() and conclusion.empty()", "result is there and conclusion is not there"),
        ("entry.count() > 1", "`entry.count() > 1`"),
    ],
)
def test_conditions_are_words_or_stay_paths(path, expected):
    assert condition_text(path) == expected


def test_values_are_found_at_named_elements():
    resource = {
        "type": [{"coding": [{"system": "s", "code": "a"}, {"code": "b"}]}],
        "valueString": "x",
        "extension": [{"url": RACE, "extension": [{"url": "ombCategory", "valueCoding": {"code": "2106-3"}}]}],
    }
    assert leaves_at(resource, "type") == [("coding.code", "a"), ("coding.code", "b")]
    assert leaves_at(resource, "value[x]") == [("", "x")]
    assert leaves_at(resource, "extension us-core-race.ombCategory") == [("valueCoding.code", "2106-3")]
    assert leaves_at(resource, "performer") == []


# --- lines ---------------------------------------------------------------------------------------------------------


def test_words_are_about_what_rules_declare():
    """A rule, column or type that is gone takes its words along."""
    words = rule_words()
    assert set(words.rules) <= set(RULES)
    assert set(words.types) <= {*CONVERTED_TYPES, "Quantity"}
    for name, lines in words.rules.items():
        for line in lines:
            assert set(line.of) <= set(RULES[name].columns), f"{name} does not read all of {line.of}"
            for pattern in line.makes:
                assert any(re.fullmatch(pattern.replace("*", ".*"), column) for column in RULES[name].writes), (
                    f"{name} makes no {pattern}"
                )


def test_elements_columns_and_rules_stand_in_one_line():
    status = line_for("Condition", "condition_occurrence", "condition_end_date")
    assert status.elements == ("abatementDateTime", "abatementPeriod.end", "abatementAge")
    assert status.columns == ("condition_end_date", "condition_end_datetime")
    kind = line_for("Condition", "condition_occurrence", "condition_type_concept_id")
    assert kind.elements == ("asserter", "recorder", "category")
    assert kind.rule.startswith(
        "32865 Patient self-report where the patient or a relative is asserter or recorder; 32827"
    )
    provider = line_for("Encounter", "visit", "provider_id")
    assert provider.elements == ("participant.individual",)
    assert "never the referrer" in provider.rule
    component = line_for("Observation", "component", "unit_concept_id")
    assert component.elements == ("component.valueQuantity.code", "component.valueQuantity.unit")


def test_every_column_that_a_golden_case_fills_is_on_the_page():
    """Of the tables that the resource's own views fill."""
    lacking = set()
    for case in golden_cases().values():
        if {resource["resourceType"] for resource in case.resources()} != {case.resource}:
            continue  # rows of others
        page = pages().get(f"mapping/{case.resource}.md")
        tables = (
            {table for view in MAPPINGS.resources[case.resource].views for table in tables_of(view)} if page else set()
        )
        for table in tables & set(case.rows()):
            for column in {name for row in case.rows()[table] for name, value in row.items() if value not in ("", "0")}:
                if column in polars_schema(table) and not LINKED.fullmatch(column) and f"`{column}`" not in page:
                    lacking.add(f"{case.resource}: {table}.{column} ({case.name})")
    assert sorted(lacking) == []


# --- examples ------------------------------------------------------------------------------------------------------


def test_examples_are_rows_of_their_own_view():
    """Rows of several views are in one table: history is no unconfirmed condition, a component not the panel."""
    condition = MAPPINGS.resources["Condition"]
    views = {view.name: view for view in condition.views}
    history = list(examples_of(condition, views["medical_history"]))
    assert history
    assert {example.row["observation_concept_id"] for example in history} == {"1340204"}
    doubtful = list(examples_of(condition, views["not_confirmed"]))
    assert doubtful
    assert all(example.row.get("observation_concept_id") != "1340204" for example in doubtful)
    assert all("verificationStatus" in example.given for example in doubtful)
    observation = MAPPINGS.resources["Observation"]
    component = next(view for view in observation.views if view.name == "component")
    assert all("component" in example.given for example in examples_of(observation, component))


def test_a_page_has_fhir_in_and_rows_out_with_names_of_concepts():
    page = pages()["mapping/Encounter.md"]
    assert re.search(r"`class\.code \w+` → `visit_concept_id` 920\d \w+ (Room )?Visit", page)
    assert "\n```yaml\nEncounter:\n  id: e1\n" in page
    assert "| `visit_occurrence` | `visit_concept_id` | 9201 Inpatient Visit |" in page
    assert "| `EMER` | v3-ActCode | 9203 Emergency Room Visit |" in page
    assert "| `status` | `planned` | excluded: `planned` |" in page


def test_a_resource_in_an_example_is_yaml_that_says_the_same():
    """Also where elements are too long for a line, and lists and their parts go over several."""
    blocks = [block for text in pages().values() for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) > 40
    seen = 0
    for block in blocks:
        for part in re.split(r"^(?=[A-Z]\w+:$)", block, flags=re.MULTILINE):
            for kind, resource in (yaml.load(part, yaml.BaseLoader) or {}).items():
                found = {"resourceType": kind, **resource}
                assert any(found == given for given in given_resources()), part
                seen += 1
    assert seen > 60


@cache
def given_resources():
    return [
        resource
        for case in golden_cases().values()
        for resource in (*(case.document.get("given") or ()), *case.resources())
    ]


@pytest.mark.parametrize("name", sorted(MAPPINGS.resources))
def test_a_page_has_every_value_of_the_status_and_every_event(name):
    page, mapping = pages()[f"mapping/{name}.md"], MAPPINGS.resources[name]
    for value in (*mapping.status.keep, *mapping.status.exclude) if mapping.status else ():
        assert f"`{value}`" in page
    for view in mapping.views:
        if view.kind in ("event", "entity"):
            assert f"## {view.name.replace('_', ' ')} → " in page
    if any(case.resource == name and case.rows() and len(case.resources()) == 1 for case in golden_cases().values()):
        assert "\n## Examples\n" in page


# --- the folder ----------------------------------------------------------------------------------------------------


def test_links_of_the_pages_lead_somewhere():
    for name, text in pages().items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert ((ROOT / "docs" / name).parent / target).resolve().exists(), f"{name}: {target}"


def test_the_folder_has_these_pages_and_others_lead_there():
    assert {f"mapping/{file.name}" for file in (ROOT / "docs" / "mapping").iterdir()} == set(pages())
    for page, link in (("README.md", "docs/mapping/README.md"), ("docs/mapping.md", "mapping/README.md")):
        assert f"({link})" in (ROOT / page).read_text(encoding="utf-8"), f"{page} does not lead to the pages"
