"""`mappings check`: the project's own mappings are right, and each kind of mistake is found where it stands."""

from __future__ import annotations

import shutil

import polars as pl
import pytest

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.sql_on_fhir.fhirpath import parse
from pipeline.sql_on_fhir.r4 import element_problems, elements_of
from pipeline.transform.column_types import CONVERTED_TYPES
from pipeline.transform.mapping.mappings import read_mappings
from pipeline.transform.mapping_check.check import check_mappings
from pipeline.transform.mapping_check.concepts import KnownConcepts, demo_concepts
from pipeline.transform.mapping_check.rehearsal import rehearsal

DEMO = demo_concepts(MAPPINGS_FOLDER / "demo_vocabulary")


@pytest.mark.requirement("f2o-050")
def test_the_projects_own_mappings_are_right():
    assert check_mappings(MAPPINGS_FOLDER, concepts=DEMO) == []


@pytest.fixture
def folder(tmp_path):
    """A few of the mappings: checking all of them takes seconds."""
    target = tmp_path / "mappings"
    shutil.copytree(MAPPINGS_FOLDER / "concept_maps", target / "concept_maps")
    for name in ("Observation", "Patient", "Procedure"):
        shutil.copy(MAPPINGS_FOLDER / f"{name}.yaml", target)
    return target


def edit(folder, name, old, new):
    """Replace a text; the line of the first difference."""
    file = folder / name
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{name} has no {old}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def told(folder, **more):
    return [
        (problem.file.rpartition("/")[2], problem.line, problem.message) for problem in check_mappings(folder, **more)
    ]


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("Procedure", "    row: own\n", "", "say whether the view gives the resource's own row"),
        (
            "Observation",
            "    row: further\n",
            "    row: own\n",
            "rows of a part that may be there repeatedly are further",
        ),
        (
            "Patient",
            "    fact: birth_date\n",
            "    fact: birth_date\n    row: own\n",
            "only a view of an event or an entity",
        ),
    ],
)
def test_every_view_that_makes_rows_says_whose(name, old, new, words, folder):
    edit(folder, f"{name}.yaml", old, new)
    ((file, _, message),) = told(folder)
    assert file == f"{name}.yaml"
    assert words in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("path: subject,", "path: subjekt,", "Procedure has no element 'subjekt' in FHIR R4; did you mean 'subject'?"),
        ("path: performed.ofType(dateTime)", "path: performed.ofType(Quantity)", "cannot be of type Quantity"),
        ("path: subject,", "path: meta.lastUpdated,", "no mapping may read them"),
        ("path: subject,", "path: meta.versionId.first(),", "no mapping may read them"),
        ("path: subject,", "path: meta,", "no mapping may read them"),
        ("path: bodySite.first()", "path: bodySite.frist()", "frist() is not supported; did you mean first()?"),
        ("path: bodySite.first()", 'path: "bodySite.first("', "the path ends"),
        ("path: bodySite.first()", "path: bodySite.coding.text", "Coding has no element 'text'"),
        ("path: bodySite.first()", "path: \"bodySite.where(codes = '1')\"", "CodeableConcept has no element 'codes'"),
        ("name: body_site", "name: bodysite", "there is no column bodysite (did you mean body_site?)"),
        (
            "type: CodeableConcept}",
            "type: CodableConcept}",
            "there is no type CodableConcept (did you mean CodeableConcept?)",
        ),
        ("type: CodeableConcept}", "type: codes}", "unknown type codes"),
        ("derive: [procedure]", "derive: [procedures]", "there is no rule procedures (did you mean procedure?)"),
        ("when: has_encounter", "when: has_encountr", "there is no column has_encountr"),
        ("when: has_encounter", "when: code", "code is not of type boolean"),
        ("code: code", "code: kode", "there is no column kode"),
        ("code: code", "code: status", "status holds no codes"),
        ("priority: procedure", "priority: procedures", "there is no vocabulary priority procedures"),
        ("table: procedure_occurrence", "table: procedures", "there is no event table procedures"),
        ("      - {concept_id: 32817}\n", "", "the last rule of type_concept_id must hold for all others"),
        ("column: status", "column: state", "there is no column state"),
        ("[person_id, start_date]", "[person_id]", "without start_date"),
        ("name: procedure_occurrence", "name: procedure", "the view procedure is there twice"),
    ],
)
def test_a_mistake_is_told_with_its_line(folder, old, new, words):
    line = edit(folder, "Procedure.yaml", old, new)
    found = told(folder)
    assert any(file == "Procedure.yaml" and words in message for file, _, message in found), found
    lines = {number for _, number, message in found if words in message}
    assert line in lines or new == "", "what is gone has no line"


def test_a_rule_that_misses_a_column_is_told(folder):
    edit(
        folder,
        "Procedure.yaml",
        "          - {name: performed_end, path: performed.ofType(Period).end, type: dateTime}\n",
        "",
    )
    [(file, _, message)] = told(folder)
    assert file == "Procedure.yaml"
    assert "the view procedure_occurrence lacks the column performed_end, which the rule procedure reads" in message


def test_a_value_map_that_a_rule_misses_is_told(folder):
    (folder / "concept_maps" / "values" / "race.csv").unlink()
    messages = [message for *_, message in told(folder)]
    assert messages
    assert all(message.startswith("there is no value map race, which the rule ") for message in messages)


def test_paths_in_loops_are_judged_where_they_stand(folder):
    line = edit(folder, "Observation.yaml", "forEach: component", "forEach: component.code.coding")
    found = told(folder)
    assert ("Observation.yaml", line + 2, "code: position") not in found
    assert any("Coding has no element 'interpretation'" in message for *_, message in found)
    assert not any("has no element 'code'" in message for *_, message in found)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("urn:x,1,99", "concept 99 is not in the vocabulary"),
        ("urn:x,1,99|8507", ""),
        ("urn:x,1,0", ""),
        ("urn:x,1,exclude:telephone", ""),
        ("urn:x,,8507", "code is empty"),
        ("urn:x,1,12", "concept 12 is no longer valid in the vocabulary; its standard concept is 13"),
        ("urn:x,1,14", "concept 14 is not Standard in the vocabulary"),
        ("urn:x,1,abc", "concept_id must be ids"),
    ],
)
def test_rows_of_value_maps(folder, row, words):
    (folder / "concept_maps" / "values" / "gender.csv").write_text(f"system,code,concept_id\n{row}\n")
    schema = {
        "concept_id": pl.Int64, "domain_id": pl.String, "standard_concept": pl.String,
        "invalid_reason": pl.String, "target_concept_id": pl.Int64,
    }  # fmt: skip
    rows = [(8507, "Gender", "S", None, None), (12, "Gender", None, "U", 13), (14, "Gender", None, None, None)]
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    known = KnownConcepts("the vocabulary", lambda ids: frame.filter(pl.col("concept_id").is_in(ids)), is_whole=True)
    found = [(line, message) for file, line, message in told(folder, concepts=known) if file == "gender.csv"]
    assert found == ([(2, found[0][1])] if words else [])
    assert not words or words in found[0][1]


@pytest.mark.requirement("f2o-050")
def test_a_type_concept_is_of_the_type_concept_domain(folder):
    line = edit(folder, "Procedure.yaml", "concept_id: 32827", "concept_id: 8507")
    assert told(folder, concepts=DEMO) == [
        ("Procedure.yaml", line, "concept 8507 is of domain Gender, not Type Concept")
    ]


def test_a_sites_mistake_is_told_with_the_sites_file(folder, tmp_path):
    (tmp_path / "own" / "north").mkdir(parents=True)
    (tmp_path / "own" / "north" / "Procedure.yaml").write_text(
        "views:\n- name: procedure\n  columns:\n  - {name: provider_id, path: performer.actr, type: Reference(Practitioner)}\n"
    )
    [problem] = check_mappings(folder, "north", tmp_path / "own")
    assert problem.file == str(tmp_path / "own" / "north" / "Procedure.yaml")
    assert problem.line == 4
    assert "ProcedurePerformer has no element 'actr'" in problem.message
    assert check_mappings(folder, None, tmp_path / "own") == []


def test_a_type_is_not_mapped_and_unmapped_at_once(folder):
    file = folder / "concept_maps" / "unmapped_types.csv"
    file.write_text(file.read_text() + "Procedure,twice\n")
    assert [message for *_, message in told(folder)] == ["Procedure has a mapping as well"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("name.given.first()", ""),
        ("Patient.name.family", ""),
        ("deceased.ofType(dateTime)", ""),
        ("deceasedDateTime", ""),
        ("multipleBirth.ofType(integer)", ""),
        ("extension('urn:x').extension('y').value.ofType(Coding).code", ""),
        ("birthDate.extension('urn:x').value.ofType(string)", ""),
        ("contained.ofType(Organization).name", ""),
        ("link.other.reference.contains('x')", ""),
        ("iif(active, name.first(), name.last()).family", ""),
        ("(name | contact.name).family", ""),
        ("meta.lastUpdated", ""),
        ("identifier[0].value", ""),
        ("%resource.name.use", ""),
        ("name.familiy", "HumanName has no element 'familiy' in FHIR R4; did you mean 'family'?"),
        ("name.where(family.x = 1)", "a primitive has no element 'x'"),
        ("gender.coding", "a primitive has no element 'coding'"),
        ("deceased.ofType(Period)", "cannot be of type Period"),
        ("deceasedPeriod", "Patient has no element 'deceasedPeriod'"),
        ("iif(activ, name, name)", "Patient has no element 'activ'"),
        ("contact.name.first().select(given | famly)", "HumanName has no element 'famly'"),
        ("extension('urn:x').values", "Extension has no element 'values'"),
    ],
)
def test_which_elements_exist(path, reason):
    problems, _ = element_problems(parse(path), "Patient", frozenset({"Patient"}))
    assert [reason in problem.reason for problem in problems] == ([True] if reason else [])


def test_what_is_not_known_is_not_judged():
    assert elements_of("NutritionProduct") is None
    assert element_problems(parse("anything.at.all"), "NutritionProduct", None)[0] == []


def test_a_column_that_only_rules_of_other_resources_read_is_reported(folder):
    """Before rules declared what they read, every text of any rule's code passed for a column."""
    edit(
        folder,
        "Procedure.yaml",
        "name: body_site, path",
        "name: rounding, path: text.status, type: code}\n          - {name: body_site, path",
    )
    assert any("there is no column rounding" in message for *_, message in told(folder))
    edit(folder, "Procedure.yaml", "name: rounding", "name: link_id")
    assert any("there is no column link_id" in message for *_, message in told(folder))


def test_a_rule_may_read_what_a_rule_before_it_makes(folder):
    edit(folder, "Procedure.yaml", "derive: [procedure]", "derive: [procedure, device_by_manufacture]")
    messages = [message for *_, message in told(folder)]
    assert messages == [
        "the view procedure_occurrence lacks the column manufacture_date, which the rule device_by_manufacture reads"
    ]


def test_every_type_that_is_converted_is_described(tmp_path):
    reading = read_mappings(MAPPINGS_FOLDER)
    with rehearsal(reading, MAPPINGS_FOLDER) as worker:
        assert worker.column_types == CONVERTED_TYPES.keys()
