"""Another release reaches what depends on it, and nothing else: each dependence by itself, and any of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omop_schema.cdm import primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.load import remap as remapping
from pipeline.load.remap import remap, remap_plan
from pipeline.quality.checks.model import Schemas
from pipeline.quality.settings_notes import settings_notes
from pipeline.quality.verify import verify_concepts
from tests.databases import empty
from tests.integration.support import Warehouse
from tests.integration.vocabulary_world import EDITS, WORLD, Releases
from tests.property_examples import histories
from tests.warehouse_content import Content, differences, warehouse_content

_FURTHER = {
    "dose_era": "SELECT drug_concept_id, unit_concept_id, dose_value::text, dose_era_start_date, dose_era_end_date"
    " FROM cdm.dose_era",
    "unmapped": "SELECT resource_id, element, system, code, count FROM unmapped_use JOIN unmapped_coding USING (coding_id)"
    " JOIN resource_state USING (surrogate_id)",
    "release": "SELECT DISTINCT vocabulary_release FROM row_source",
    "cdm_source": "SELECT vocabulary_version FROM cdm.cdm_source",
}


def content(warehouse: Warehouse) -> Content:
    with warehouse.runtime.connect() as connection:
        found = warehouse_content(connection, state=False)
        found["state"] = Counter(
            connection.execute("SELECT resource_id, outcome, reason FROM resource_state").fetchall()
        )
        for name, query in _FURTHER.items():
            found[name] = Counter(connection.execute(query).fetchall())
    return found


def versions(warehouse: Warehouse) -> dict[str, list[tuple[Any, ...]]]:
    """Resource → table, id and version (xmin) of its rows: a row that is written again has another one."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for table in LINEAGE_TABLES:
        own = primary_key(table) or "person_id"
        rows = warehouse.rows(
            f"SELECT state.resource_id, row.{own}, row.xmin::text, state.xmin::text FROM {lineage_table_name(table)} AS lineage"
            f" JOIN cdm.{table} AS row ON row.{own} = lineage.row_id JOIN resource_state AS state USING (surrogate_id)"
        )
        for resource_id, *version in rows:
            found.setdefault(resource_id, []).append((table, *version))
    return {resource_id: sorted(of) for resource_id, of in found.items()}


def notes(warehouse: Warehouse) -> list[str]:
    with warehouse.runtime.connect() as connection:
        return list(settings_notes(warehouse.runtime, connection))


def wrong_concepts(warehouse: Warehouse) -> list[str]:
    schemas = Schemas("cdm", "vocab", warehouse.runtime.settings.cdm_version)
    with warehouse.runtime.connect() as connection:
        return [f"{check.name}: {check.detail}" for check in verify_concepts(connection, schemas) if not check.ok]


def site(warehouse: Warehouse) -> Any:
    return warehouse.runtime.settings.site_or_folder("one")


@pytest.fixture(scope="module")
def releases(module_warehouse: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(module_warehouse, tmp_path_factory.mktemp("releases"))


def begin(warehouse: Warehouse, releases: Releases, world: Any = WORLD) -> None:
    """An empty warehouse, then the world under the vocabulary without edits."""
    with warehouse.runtime.connect() as connection:
        empty(connection)
    releases.load()
    warehouse.load(world)


def fresh(warehouse: Warehouse, world: Any = WORLD) -> Content:
    """What a fresh load makes of the world under the vocabulary that is loaded."""
    with warehouse.runtime.connect() as connection:
        empty(connection)
    warehouse.load(world)
    return content(warehouse)


def concerned(names: Iterable[str]) -> set[str]:
    return {resource for name in names for resource in EDITS[name].concerns}


def assert_remapped(warehouse: Warehouse, names: Iterable[str]) -> None:
    """A remap maps what the edits concern, writes no other row, and says before what it will do."""
    before = versions(warehouse)
    plan = remap_plan(warehouse.runtime, site(warehouse))
    assert versions(warehouse) == before
    report = remap(warehouse.runtime, site(warehouse))
    warehouse.assert_whole()
    assert dict(report.mapped) == dict(plan.resources)
    after = versions(warehouse)
    others = set(before) - concerned(names)
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert report.mapped.total() == len(concerned(names))
    assert notes(warehouse) == []
    assert wrong_concepts(warehouse) == []
    again = remap(warehouse.runtime, site(warehouse))
    assert (again.vocabulary, again.mapped.total(), again.export_ids) == (None, 0, [])
    assert content(warehouse) == content(warehouse)


@pytest.mark.parametrize("name", EDITS)
def test_one_change_reaches_its_resources_alone(module_warehouse: Warehouse, releases: Releases, name: str) -> None:
    begin(module_warehouse, releases)
    former = content(module_warehouse)
    label = releases.load(name)
    assert_remapped(module_warehouse, [name])
    reached = content(module_warehouse)
    assert reached["release"] == reached["cdm_source"] == Counter([(label,)])
    assert differences(reached, fresh(module_warehouse)) == []
    if EDITS[name].concerns:  # or the test would say nothing
        assert any(reached[table] != former.get(table) for table in reached if table not in ("release", "cdm_source"))


@histories(4)
@given(
    names=st.lists(st.sampled_from(sorted(EDITS)), min_size=2, max_size=4, unique=True),
    comes=st.lists(st.sampled_from(sorted(WORLD)), max_size=3, unique=True),
    is_cut=st.booleans(),
)
def test_any_changes_end_in_what_a_fresh_load_makes(
    module_warehouse: Warehouse, releases: Releases, names: list[str], comes: list[str], is_cut: bool
) -> None:
    """A night under the new release comes first: what it holds and is concerned is mapped by it, the rest is named as old.
    The remap after it may end half-way, and there may be another release in between."""
    begin(module_warehouse, releases)
    half = names[: len(names) // 2]
    releases.load(*half)
    if comes:
        module_warehouse.load({name: WORLD[name] for name in comes})
    releases.load(*names)
    if comes:
        module_warehouse.load({name: WORLD[name] for name in comes})
        module_warehouse.assert_whole()
    if is_cut:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remapping, "replay_lines", _killed)
            with pytest.raises(_Killed):
                remap(module_warehouse.runtime, site(module_warehouse), everything=True)
    remap(module_warehouse.runtime, site(module_warehouse))
    module_warehouse.assert_whole()
    assert notes(module_warehouse) == []
    assert differences(content(module_warehouse), fresh(module_warehouse)) == []


def test_verify_names_concepts_that_the_active_release_lacks(module_warehouse: Warehouse, releases: Releases) -> None:
    begin(module_warehouse, releases)
    assert wrong_concepts(module_warehouse) == []
    releases.load("target is no longer valid", "code becomes known")
    remap(module_warehouse.runtime, site(module_warehouse))
    releases.load("target is no longer valid")
    (missing,) = wrong_concepts(module_warehouse)
    assert "measurement: every concept is in the active vocabulary" in missing
    assert "measurement_concept_id 900001 in 2 rows" in missing
    with module_warehouse.runtime.connect() as connection:
        connection.execute(
            "UPDATE cdm.condition_occurrence SET condition_concept_id = 317009 WHERE condition_concept_id = 0"
        )
        connection.commit()
    invalid = next(found for found in wrong_concepts(module_warehouse) if "condition_occurrence" in found)
    assert "invalid: condition_concept_id 317009" in invalid


class _Killed(Exception):
    """What no code expects."""


def _killed(*_arguments: Any) -> Any:
    raise _Killed


def test_a_night_maps_what_it_holds_and_the_rest_is_named(module_warehouse: Warehouse, releases: Releases) -> None:
    begin(module_warehouse, releases)
    before = versions(module_warehouse)
    label = releases.load("domain of a target", "strength of a drug", "unit becomes known")
    (note,) = [note for note in notes(module_warehouse) if "compared" in note]
    assert label in note
    assert "epic-omop remap --site one" in note
    module_warehouse.load({"Condition": WORLD["Condition"]})
    after = versions(module_warehouse)
    assert {name for name in before if before[name] != after[name]} == {
        "c1",
        "c2",
        "c4",
        "o2",
        "m2",
    }  # the last two: marks
    (note,) = notes(module_warehouse)
    assert "2 resources" in note
    rows = module_warehouse.rows("SELECT resource_id, vocabulary_release = %s FROM row_source", label)
    assert {resource_id for resource_id, is_new in rows if not is_new} == {"o2", "m2"}
    assert_remapped(module_warehouse, ["unit becomes known", "strength of a drug"])


def test_the_same_release_costs_nothing(
    module_warehouse: Warehouse, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(module_warehouse, releases)
    remap(module_warehouse.runtime, site(module_warehouse))
    before = versions(module_warehouse)

    def asked(*_arguments: Any) -> Any:
        raise AssertionError("nothing is to be asked or read")

    monkeypatch.setattr("pipeline.load.vocabulary_changes._Answers", asked)
    monkeypatch.setattr("pipeline.load.vocabulary_changes._holders", asked)
    assert remap_plan(module_warehouse.runtime, site(module_warehouse)).is_empty
    module_warehouse.load(WORLD)
    assert versions(module_warehouse) == before
