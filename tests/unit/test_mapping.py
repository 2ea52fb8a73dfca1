"""Reading mappings: what is wrong is told with file and line, and the project's own are whole."""

from __future__ import annotations

import shutil

import pytest

from omop_schema.cdm import TABLES
from pipeline.core.errors import MappingError
from pipeline.core.resource_types import RESOURCE_TYPES
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.mapping.mappings import fixed_concepts, load_mappings
from pipeline.transform.rules import RULES

PROJECT = load_mappings(MAPPINGS_FOLDER)
VIEWS = [(resource, view) for resource in PROJECT.resources.values() for view in resource.views]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(MAPPINGS_FOLDER, tmp_path / "mappings")
    return tmp_path / "mappings"


def edit(folder, name, old, new):
    file = folder / name
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("resource", "view"), VIEWS, ids=[f"{resource.resource}/{view.name}" for resource, view in VIEWS]
)
def test_the_projects_mappings_name_only_what_exists(resource, view):
    assert set(view.derive) <= set(RULES)
    assert {rule.table for rule in view.home_table} | ({view.table} if view.table else set()) <= set(TABLES)
    columns = set(resource.resource_view.column_types) | set(view.column_types)
    conditions = [rule.when for rule in (*view.home_table, *view.type_concept_id, *view.concept_id) if rule.when]
    assert set(conditions) <= columns
    assert view.code is None or view.code in columns
    assert view.priority is None or view.priority in PROJECT.vocabulary_priority
    events = {other.name for other in resource.views if other.kind == "event" and not other.events}
    assert set(view.events) <= events
    assert not view.events or view.kind == "event"
    assert not view.row_key or view.kind == "entity"
    if view.kind == "event":
        assert bool(view.code) != bool(view.concept_id)
        assert {"person_id", "start_date"} <= set(view.required)
    for rules in (view.home_table, view.type_concept_id):
        assert view.kind != "event" or rules[-1].when is None, "the last rule holds for all others"


@pytest.mark.parametrize("resource", PROJECT.resources.values(), ids=lambda resource: resource.resource)
def test_filters_name_columns_of_the_resource_view(resource):
    columns = resource.resource_view.column_types
    assert resource.status is None or resource.status.column in columns
    assert all(rule.when in columns for rule in resource.exclude)
    if resource.status:
        assert not set(resource.status.keep) & set(resource.status.exclude)


def test_no_type_is_mapped_and_unmapped_at_once():
    assert not set(PROJECT.resources) & set(PROJECT.unmapped_types)


def test_every_type_of_r4_is_mapped_or_left_out_for_a_reason():
    """`no_mapping` is left for types that FHIR R4 does not have."""
    assert set(PROJECT.resources) | set(PROJECT.unmapped_types) == RESOURCE_TYPES
    assert "no_mapping" not in PROJECT.unmapped_types.values()


def test_every_reason_to_leave_a_type_out_is_explained():
    said = (MAPPINGS_FOLDER.parent / "docs" / "mapping.md").read_text()
    assert [reason for reason in sorted(set(PROJECT.unmapped_types.values())) if f"| `{reason}` |" not in said] == []


def test_type_concepts_that_are_no_longer_standard_are_not_used():
    """38000175 to 38000179, 44814724 and their like were replaced by the concepts of the Type Concept vocabulary."""
    named = set(fixed_concepts(MAPPINGS_FOLDER))
    assert not named & {*range(38000175, 38000200), 44814724, 8521, 8551, 0}
    assert {32817, 8507, 8532, 9201} <= named


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(MappingError, match=r"no mappings"):
        load_mappings(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: resource", "kind: table", "kind"),
        ("resource: Procedure", "resources: Procedure", "resource"),
        ("required: [person_id, start_date]", "required: person_id", "required"),
        ("keep: [completed]", "keep: completed", "keep"),
        ("status:\n", "status: [\n", "YAML"),
    ],
)
def test_a_wrong_mapping_is_told_with_its_file(folder, old, new, said):
    edit(folder, "Procedure.yaml", old, new)
    with pytest.raises(MappingError) as raised:
        load_mappings(folder)
    assert "Procedure.yaml" in str(raised.value)
    assert said in str(raised.value)


def test_the_line_of_a_mistake_is_told(folder):
    edit(folder, "Procedure.yaml", "kind: event", "kind: nothing")
    line = (folder / "Procedure.yaml").read_text(encoding="utf-8").splitlines().index("    kind: nothing") + 1
    with pytest.raises(MappingError, match=rf"Procedure.yaml:{line}"):
        load_mappings(folder)


@pytest.mark.parametrize("line", ["only-one-column", "s,c,not a number", "s,c,1|x"])
def test_a_wrong_value_map_is_told_with_its_line(folder, line):
    file = folder / "concept_maps" / "values" / "gender.csv"
    file.write_text(f"system,code,concept_id\ns,c,1\n{line}\n", encoding="utf-8")
    with pytest.raises(MappingError, match=r"gender.csv:3"):
        load_mappings(folder)


def own_values(folder, site, *lines):
    values = folder / "sites" / site / "values"
    values.mkdir(parents=True)
    (values / "encounter_class.csv").write_text("\n".join(["system,code,concept_id", *lines, ""]), encoding="utf-8")


def test_a_site_adds_and_replaces_entries_of_its_own(folder):
    act = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
    own_values(
        folder, "north", f"{act},AMB,581477", "urn:epic,11,exclude:telephone", "urn:epic,12,exclude", "urn:epic,5,1|2"
    )

    def entries(site):
        return {(item.system, item.code): item for item in load_mappings(folder, site).value_maps["encounter_class"]}

    north, south = entries("north"), entries("south")
    assert south[act, "AMB"].concept_ids == (9202,)
    assert north[act, "AMB"].concept_ids == (581477,)
    assert north[act, "IMP"] == south[act, "IMP"]
    assert north["urn:epic", "11"].exclude_reason == "telephone"
    assert north["urn:epic", "12"].exclude_reason == "exclude"
    assert north["urn:epic", "5"].concept_ids == (1, 2)


def own_map(folder, name, text):
    values = folder / "sites" / "north" / "values"
    values.mkdir(parents=True)
    (values / f"{name}.csv").write_text(text, encoding="utf-8")
    return load_mappings(folder, "north").value_maps[name]


def test_an_entry_may_hold_beside_another_code_only(folder):
    found = own_map(folder, "encounter_type", "system,code,within,concept_id\nurn:t,A,,9202\nurn:t,A,IMP,262\n")
    own = {entry.within: entry.concept_ids for entry in found if entry.system == "urn:t"}
    assert own == {None: (9202,), "IMP": (262,)}


def test_a_target_may_be_a_code_or_a_meaning(folder):
    text = "system,code,concept_id\nurn:t,A,SNOMED:410516002|9189\nurn:t,B,meaning:died\n"
    by_code = {entry.code: entry for entry in own_map(folder, "discharge_disposition", text) if entry.system == "urn:t"}
    assert by_code["A"].targets == ("SNOMED:410516002", 9189)
    assert by_code["A"].concept_ids == (9189,)
    assert (by_code["B"].targets, by_code["B"].meaning) == ((), "died")
    assert by_code["A"].meaning is None


def test_codes_in_place_of_ids_are_known_by_where_they_stand():
    assert PROJECT.coded_concepts["SNOMED:416093006"] == "AllergyIntolerance reaction_to_substance"
    assert PROJECT.coded_concepts["SNOMED:723511001"] == "concept_maps/condition_qualifier refuted"
    assert not [target for target in PROJECT.fixed_concepts if isinstance(target, str)]


def test_a_code_without_its_vocabulary_is_told(folder):
    edit(folder, "AllergyIntolerance.yaml", '"SNOMED:281647001"}', '"281647001 x"}')
    with pytest.raises(MappingError, match=r"AllergyIntolerance\.yaml"):
        load_mappings(folder)


def test_a_fingerprint_changes_with_what_can_change_a_row(folder):
    before = load_mappings(folder)
    own_values(folder, "north", "urn:epic,5,581477")
    edit(folder, "Procedure.yaml", "concept_id: 32817", "concept_id: 32865")
    after, north = load_mappings(folder), load_mappings(folder, "north")
    assert after.fingerprint("Procedure") != before.fingerprint("Procedure")
    assert after.fingerprint("Encounter") == before.fingerprint("Encounter")
    assert north.fingerprint("Encounter") != before.fingerprint("Encounter")
    assert load_mappings(folder).fingerprint("Procedure") == after.fingerprint("Procedure")


def test_mappings_are_interpreted_once_while_their_files_stay_the_same(folder):
    before = load_mappings(folder, "north")
    assert load_mappings(folder, "north") is before
    assert load_mappings(folder, "south") is before, "neither has entries of its own"
    own_values(folder, "north", "urn:epic,5,581477")
    changed = load_mappings(folder, "north")
    assert changed is not before
    assert changed.value_maps != before.value_maps
    (folder / "sites" / "north" / "values" / "typo.csv").write_text("system,code,concept_id\n", encoding="utf-8")
    with pytest.raises(MappingError):
        load_mappings(folder, "north")
