"""A site's own part of the mappings: what it may change, and that nothing else changes."""

from __future__ import annotations

import shutil

import pytest

from pipeline.core.errors import MappingError
from pipeline.core.settings import MAPPINGS_FOLDER, load_settings
from pipeline.transform.mapping.mappings import load_mappings, read_mappings

PLAIN = load_mappings(MAPPINGS_FOLDER)


@pytest.fixture
def own(tmp_path):
    """Writes files of the site `north`, outside the shared mappings, and loads what holds for it."""

    def write(files, *, load=load_mappings):
        for name, text in files.items():
            file = tmp_path / "north" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return load(MAPPINGS_FOLDER, "north", None, tmp_path)

    return write


def refusal(own, files):
    with pytest.raises(MappingError) as raised:
        own(files)
    return str(raised.value)


def views(mappings, resource):
    return {view.name: view for view in mappings.resources[resource].views}


def untouched(found, *resources):
    """All resources but these are as without the site, and so are their fingerprints."""
    for name in set(PLAIN.resources) - set(resources):
        assert found.resources[name] == PLAIN.resources[name]
        assert found.fingerprint(name) == PLAIN.fingerprint(name), name


def test_without_own_files_nothing_changes(own):
    assert own({}) == PLAIN


def test_a_status_is_moved_to_where_the_site_wants_it(own):
    found = own({"Procedure.yaml": "status:\n  keep: [in-progress]\n  exclude: {completed: too_early, odd: odd}\n"})
    status, before = found.resources["Procedure"].status, PLAIN.resources["Procedure"].status
    assert set(status.keep) == {"in-progress"}
    assert dict(status.exclude) == {
        **{name: reason for name, reason in before.exclude.items() if name != "in-progress"},
        "completed": "too_early",
        "odd": "odd",
    }
    assert (status.column, status.missing) == (before.column, before.missing)
    assert found.resources["Procedure"].views == PLAIN.resources["Procedure"].views
    assert found.fingerprint("Procedure") != PLAIN.fingerprint("Procedure")
    untouched(found, "Procedure")


def test_a_status_filter_for_a_resource_that_has_none(own):
    found = own(
        {
            "Practitioner.yaml": "status: {column: is_active, keep: ['yes'], missing: keep}\n"
            "views: [{name: practitioner, columns: [{name: is_active, path: active.toString(), type: string}]}]\n"
        },
        load=read_mappings,
    )
    assert found.mappings.resources["Practitioner"].status.column == "is_active"


def test_exclusions_and_known_modifiers_are_added(own):
    found = own(
        {
            "MedicationRequest.yaml": "exclude: [{when: is_reported, reason: told_by_patient}]\n"
            "known_modifiers: ['urn:example:known']\n"
        }
    )
    mapping, before = found.resources["MedicationRequest"], PLAIN.resources["MedicationRequest"]
    assert mapping.exclude[:-1] == before.exclude
    assert mapping.exclude[-1].reason == "told_by_patient"
    assert mapping.known_modifiers == (*before.known_modifiers, "urn:example:known")
    untouched(found, "MedicationRequest")


def test_a_column_is_replaced_or_added_without_repeating_the_select(own):
    found = own(
        {
            "Observation.yaml": """
views:
  - name: component
    columns:
      - {name: unit_text, path: value.ofType(Quantity).code, type: string}
      - {name: qualifier_source_value, path: code.text, type: string}
"""
        }
    )
    mine, before = views(found, "Observation")["component"], views(PLAIN, "Observation")["component"]
    assert mine.column_paths == {
        **before.column_paths,
        "unit_text": "value.ofType(Quantity).code",
        "qualifier_source_value": "code.text",
    }
    assert [select.get("forEach") for select in mine.definition["select"]] == ["component"]
    assert mine.model_copy(update={"definition": before.definition}) == before
    assert views(found, "Observation")["value"] == views(PLAIN, "Observation")["value"]
    untouched(found, "Observation")


def test_a_column_is_dropped(own):
    found = own({"Procedure.yaml": "views: [{name: procedure, columns: [{name: body_site, remove: true}]}]\n"})
    assert set(views(PLAIN, "Procedure")["procedure"].column_types) - set(
        views(found, "Procedure")["procedure"].column_types
    ) == {"body_site"}


def test_keys_of_a_view_replace_and_a_fixed_concept_replaces_the_code(own):
    found = own({"Procedure.yaml": "views: [{name: procedure_occurrence, concept_id: [{concept_id: 4163872}]}]\n"})
    view = views(found, "Procedure")["procedure_occurrence"]
    assert (view.code, view.concept_id[0].concept_ids) == (None, (4163872,))
    assert view.definition == views(PLAIN, "Procedure")["procedure_occurrence"].definition


def test_views_are_added_and_dropped(own):
    found = own(
        {
            "Condition.yaml": """
views:
  - {name: medical_history, remove: true}
  - name: stage
    kind: fact
    fact: stage
    select: [{column: [{name: value, path: stage.summary.text.first(), type: string}]}]
"""
        }
    )
    kept = [name for name in views(PLAIN, "Condition") if name != "medical_history"]
    assert list(views(found, "Condition")) == [*kept, "stage"]
    untouched(found, "Condition")


def test_a_whole_resource_of_the_sites_own(own):
    found = own(
        {
            "ServiceRequest.yaml": """
resource: ServiceRequest
views:
  - name: request
    kind: resource
    select: [{column: [{name: person_id, path: subject, type: Reference(Patient)}]}]
"""
        }
    )
    assert "ServiceRequest" in PLAIN.unmapped_types
    assert "ServiceRequest" not in found.unmapped_types
    assert found.resources["ServiceRequest"].views[0].name == "request"
    untouched(found)


def test_a_site_leaves_out_a_resource(own):
    found = own({"unmapped_types.csv": "resource_type,reason\nCoverage,billing_elsewhere\n"})
    assert "Coverage" not in found.resources
    assert found.unmapped_types["Coverage"] == "billing_elsewhere"
    untouched(found, "Coverage")


def test_tables_are_laid_over_by_key(own):
    found = own(
        {
            "code_systems.csv": "system,vocabulary_id\nurn:oid:1.2.840.114350.1.13.99.2.7.2.696580,EPIC_EDG\n",
            "constants.csv": "name,concept_id\nvalue_true,1|4188539\n",
            "vocabulary_priority.yaml": "lab: [SNOMED, LOINC]\n",
        }
    )
    assert found.code_systems == {**PLAIN.code_systems, "urn:oid:1.2.840.114350.1.13.99.2.7.2.696580": "EPIC_EDG"}
    assert found.constants == {**PLAIN.constants, "value_true": (1, 4188539)}
    assert found.vocabulary_priority == {**PLAIN.vocabulary_priority, "lab": ("SNOMED", "LOINC")}


@pytest.mark.requirement("f2o-061")
@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [
        ("values/encounter_class.csv", "system,code,concept_id\nurn:epic,5,9202\n", {"Encounter"}),
        ("values/race.csv", "system,code,concept_id\nurn:epic,5,8527\n", {"Patient"}),
        ("vocabulary_priority.yaml", "vaccine: [NDC]\n", {"Immunization"}),
        ("constants.csv", "name,concept_id\nrace_mixed,0\n", {"Patient"}),
        ("code_systems.csv", "system,vocabulary_id\nurn:epic,EPIC\n", set(PLAIN.resources)),
    ],
)
def test_fingerprints_change_where_rows_can_change(own, file, text, changed):
    found = own({file: text})
    assert {name for name in PLAIN.resources if found.fingerprint(name) != PLAIN.fingerprint(name)} == changed


def test_the_home_is_laid_over_what_the_mappings_folder_has(tmp_path):
    folder = tmp_path / "mappings"
    shutil.copytree(MAPPINGS_FOLDER, folder)
    for parent, reason in ((folder / "sites", "first"), (tmp_path / "own", "second")):
        (parent / "north").mkdir(parents=True)
        (parent / "north" / "Procedure.yaml").write_text(f"status: {{exclude: {{stopped: {reason}}}}}\n")
    (folder / "sites" / "north" / "Coverage.yaml").write_text("order: 11\n")
    found = load_mappings(folder, "north", None, tmp_path / "own")
    assert found.resources["Procedure"].status.exclude["stopped"] == "second"
    assert found.resources["Coverage"].order == 11


def test_the_folder_is_in_the_home_or_where_the_setting_says(tmp_path):
    home = {"EPIC_OMOP_HOME": str(tmp_path)}
    assert load_settings(home).site_mappings_folder == tmp_path / "mappings" / "sites"
    other = load_settings({**home, "EPIC_OMOP_SITE_MAPPINGS": "/srv/own"})
    assert str(other.site_mappings_folder) == "/srv/own"


@pytest.mark.parametrize(
    ("file", "text", "place", "words"),
    [
        ("Procedure.yaml", "status:\n  keep: 5\n", "Procedure.yaml:2", "keep is a list"),
        ("Procedure.yaml", "status:\n  keep: [a]\n  exclude: {a: b}\n", "Procedure.yaml:3", "both kept and excluded"),
        ("Procedure.yaml", "status:\n  kept: [a]\n", "Procedure.yaml:2", "status.kept"),
        ("Procedure.yaml", "views:\n- {name: no_view, remove: true}\n", "Procedure.yaml:2", "no view no_view"),
        ("Procedure.yaml", "views:\n- {name: procedure, remove: true}\n", "Procedure.yaml:2", "cannot be removed"),
        ("Procedure.yaml", "views:\n- {columns: []}\n", "Procedure.yaml:2", "needs the name"),
        ("Procedure.yaml", "views:\n- {name: a, kind: event}\n- {name: a}\n", "Procedure.yaml:3", "there twice"),
        ("Procedure.yaml", "views:\n- name: procedure\n  kind: table\n", "Procedure.yaml:3", "kind"),
        (
            "Procedure.yaml",
            "views:\n- name: procedure\n  columns:\n  - {name: x, remove: true}\n",
            "Procedure.yaml:4",
            "no column x",
        ),
        ("Procedure.yaml", "views:\n- name: procedure\n  columns: []\n  select: []\n", "Procedure.yaml:3", "either"),
        ("Procedure.yaml", "order: 1\norder: 2\n", "Procedure.yaml:2", "there twice"),
        ("Procedure.yaml", "resource: Condition\n", "Procedure.yaml:1", "must be Procedure"),
        ("Procedure.yaml", "views: [\n", "Procedure.yaml:2", "not valid YAML"),
        ("Procedure.yaml", "just text\n", "Procedure.yaml:1", "mapping of keys"),
        ("Procedures.yaml", "order: 1\n", "Procedures.yaml:1", "resource"),
        ("Procedure.yml", "order: 1\n", "Procedure.yml", "nothing that a site can have"),
        ("encounter_class.csv", "system,code,concept_id\n", "encounter_class.csv", "nothing that a site can have"),
        ("values/encounter_clas.csv", "system,code,concept_id\n", "encounter_clas.csv", "no rule reads"),
        ("values/gender.csv", "system,code,concept_id\ns,c,1\ns,c,2\n", "gender.csv:3", "there twice, first in line 2"),
        ("values/gender.csv", "system;code;concept_id\n", "gender.csv:1", "needs the columns"),
        (
            "values/gender.csv",
            "system,code,concept_id\ns,c,1,2\n",
            "gender.csv:2",
            "one value for each of the columns system, code, concept_id",
        ),
        ("code_systems.csv", "system\nurn:x\n", "code_systems.csv:1", "needs the columns"),
        ("constants.csv", "name,concept_id\nvalue_true,yes\n", "constants.csv:2", "ids joined"),
        ("vocabulary_priority.yaml", "lab: LOINC\n", "vocabulary_priority.yaml:1", "list of vocabulary ids"),
    ],
)
def test_what_does_not_fit_is_told_with_the_sites_file_and_line(own, file, text, place, words):
    said = refusal(own, {file: text})
    assert f"north/{file.removesuffix(file.split('/')[-1])}{place}: " in said
    assert words in said


def test_a_resource_is_not_mapped_and_left_out_at_once(own):
    said = refusal(
        own, {"Coverage.yaml": "order: 11\n", "unmapped_types.csv": "resource_type,reason\nCoverage,elsewhere\n"}
    )
    assert "unmapped_types.csv:2" in said


def test_all_problems_are_read_at_once(own):
    found = own(
        {"Procedure.yaml": "order: x\n", "Coverage.yaml": "orders: 1\n", "constants.csv": "name,concept_id\nx,y\n"},
        load=read_mappings,
    )
    assert found.mappings is None
    assert [(problem.file.rpartition("/")[2], problem.line) for problem in sorted(found.problems)] == [
        ("Coverage.yaml", 1),
        ("Procedure.yaml", 1),
        ("constants.csv", 2),
    ]
    assert "2 more" in refusal(own, {})


def test_names_of_the_last_version_are_accepted_with_a_warning(own, caplog):
    found = own(
        {
            "Device.yaml": "alone: device_alone\n",
            "Observation.yaml": "views:\n- name: method\n  kind: reference_value\n  fact: method\n"
            "  select: [{column: [{name: value, path: method.text, type: string}]}]\n",
        }
    )
    assert found.resources["Device"].excluded_unless_row == "device_alone"
    assert views(found, "Observation")["method"].kind == "fact"
    assert "Device.yaml:1: alone is now called excluded_unless_row" in caplog.text
    assert "Observation.yaml:3: reference_value is now called fact" in caplog.text
    own({}, load=read_mappings)
    assert caplog.text.count("is now called") == 2, "each once a process, however often the files are read"


@pytest.mark.parametrize("keys", [("alone", "excluded_unless_row"), ("excluded_unless_row", "alone")])
def test_an_old_name_beside_the_new_one_is_the_same_key_twice(own, keys):
    message = refusal(own, {"Device.yaml": "".join(f"{key}: reason_{number}\n" for number, key in enumerate(keys))})
    assert "Device.yaml:2" in message
    assert "'excluded_unless_row' is there twice" in message
