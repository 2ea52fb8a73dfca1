"""Every setting either changes the fingerprints of the types whose rows it decides, or is said here to decide none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from omop_schema.versions import CdmVersion
from pipeline.core.mapping_options import MappingOptions, resources_of
from pipeline.core.settings import MAPPINGS_FOLDER, Settings, SiteSettings
from pipeline.load.fingerprints import fingerprints
from pipeline.publication.steps.derived_rows import derived_options
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.rules import RULES
from pipeline.warehouse.runtime import Runtime
from tests.transforming import index_of

#: Settings of a site that decide rows of every type, each with another value than the default.
OF_ALL_TYPES: Mapping[str, Any] = {
    "time_zone": "America/Chicago",
    "max_line_bytes": 2048,
    "text_source_value_types": ("Observation",),
}
#: Those that decide derived rows alone, which remember their own rules.
OF_DERIVED_ROWS: Mapping[str, Any] = {
    "go_live_date": "2020-01-01",
    "go_live_dates": {"drug_exposure": "2021-01-01"},
    "drug_era_gap_days": "ohdsi_script",
    "observation_period_gap_days": 365,
    "observation_period_tail_days": 30,
    "observation_period_months_before_birth": 9,
    "doubted_deaths": "drop",
}
#: Its name is a part of every identity: other surrogate ids, other resources.
IDENTITY = {"name"}
#: How the site is reached and asked. What comes is another export then; what has come is mapped as before.
EXTRACTION = {
    "download_floor_bytes_per_second",
    "landing_keep",
    "fhir_url", "client_id", "private_key_file", "private_key_env", "key_id", "algorithm", "previous_private_key_file",
    "previous_private_key_env", "previous_key_id", "jwks_url", "scope_version", "audience", "groups", "resource_types",
    "kickoff_window_hours", "poll_floor_seconds", "poll_ceiling_seconds", "download_workers", "allowed_origins",
    "ca_file", "private_networks", "supports_since", "request_budget_per_hour", "test_mode", "schedule", "hydrate",
    "hydrate_types", "hydrate_again_days", "patients_file", "crawl_searches", "search_count", "search_last_updated",
    "rest_workers", "requests_per_second",
}  # fmt: skip
#: Judged anew by each publication, from what all exports held.
VANISHING = {"vanished", "left_group", "empty_when_missing", "tolerated_messages"}

#: Counts rows that are there, or asks others about unknown codes, whose answers are compared code by code.
COUNTS = {"count_duplicates", "resolvers"}

#: By which bounds a night is compared with the nights before.
COMPARED = {"history_bounds"}

#: The same of the instance: what decides rows, …
INSTANCE: Mapping[str, Any] = {"time_zone": "Asia/Kolkata", "cdm_version": CdmVersion.V5_5}
#: … and what does not: places, and who is who (the salt makes other identities; the mappings are compared by content).
OTHERS_OF_INSTANCE = {
    "home", "database_url", "dagster_schema", "operations", "cdm_schema", "vocab_schema", "etl_schema",
    "workers", "surrogate_salt", "lakehouse",
    "lakehouse_schedule", "sites", "mappings", "site_mappings", "person_crosswalk", "identifier_key", "role_suffix",
    "ui_hosts", "worker_memory_mb", "cdm_source",
}  # fmt: skip


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return Runtime(Settings(home=tmp_path_factory.mktemp("home")))


def marks(runtime: Runtime, site: SiteSettings, index: ConceptIndex | None = None) -> dict[str, int]:
    index = index or index_of(runtime.settings.home / "index", [("Gender", "F", 8532, "Gender")])
    mappings = load_mappings(MAPPINGS_FOLDER, site.name, site.mapping)
    return fingerprints(runtime, site, mappings, index)


def changed(runtime: Runtime, site: SiteSettings, other: Runtime | None = None) -> set[str]:
    before, after = marks(runtime, SiteSettings(name="one")), marks(other or runtime, site)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_a_release_changes_the_types_whose_named_concepts_it_changes(runtime: Runtime, tmp_path: Path) -> None:
    site = SiteSettings(name="one")
    same = replace(index_of(tmp_path / "same", [("Gender", "F", 8532, "Gender")]), content_hash="of another release")
    other = index_of(tmp_path / "other", [("Gender", "F", 8532, "Observation")])
    before = marks(runtime, site)
    assert marks(runtime, site, same) == before
    assert {name for name, mark in marks(runtime, site, other).items() if mark != before[name]} == {
        "Patient",
        "Practitioner",
    }


def test_every_setting_is_declared() -> None:
    declared = [
        OF_ALL_TYPES.keys(),
        OF_DERIVED_ROWS.keys(),
        IDENTITY,
        EXTRACTION,
        VANISHING,
        COUNTS,
        COMPARED,
        {"mapping"},
    ]
    assert sorted(name for group in declared for name in group) == sorted(SiteSettings.model_fields)
    assert sorted([*INSTANCE, *OTHERS_OF_INSTANCE]) == sorted(Settings.model_fields)


@pytest.mark.parametrize(("name", "value"), OF_ALL_TYPES.items())
def test_what_decides_rows_of_all_types_changes_all(runtime: Runtime, name: str, value: Any) -> None:
    site = SiteSettings.model_validate({"name": "one", name: value})
    assert changed(runtime, site) == set(marks(runtime, site))


@pytest.mark.parametrize(("name", "value"), INSTANCE.items())
def test_what_decides_rows_of_all_sites_changes_all(runtime: Runtime, name: str, value: Any) -> None:
    other = Runtime(runtime.settings.model_copy(update={name: value}))
    site = SiteSettings(name="one")
    assert changed(runtime, site, other) == set(marks(runtime, site))


@pytest.mark.parametrize(("name", "value"), OF_DERIVED_ROWS.items())
def test_derived_rows_remember_their_own(runtime: Runtime, name: str, value: Any) -> None:
    site = SiteSettings.model_validate({"name": "one", name: value})
    assert changed(runtime, site) == set()
    assert derived_options(site, runtime.settings) != derived_options(SiteSettings(name="one"), runtime.settings)


@pytest.mark.parametrize("name", MappingOptions.model_fields)
def test_an_option_changes_the_types_that_it_names(runtime: Runtime, name: str) -> None:
    field = MappingOptions.model_fields[name]
    for value in get_args(field.annotation):
        if value != field.default:
            mapping = MappingOptions.model_validate({name: value})
            assert changed(runtime, SiteSettings(name="one", mapping=mapping)) == set(resources_of(field)), value


def test_an_option_names_every_type_whose_rules_read_it() -> None:
    """In the mapping files, and in the declarations of their rules."""
    read: dict[str, set[str]] = {name: set() for name in MappingOptions.model_fields}
    for resource_type, mapping in load_mappings(MAPPINGS_FOLDER).resources.items():
        text = (MAPPINGS_FOLDER / f"{resource_type}.yaml").read_text(encoding="utf-8")
        of_rules = {option for view in mapping.views for rule in view.derive for option in RULES[rule].options}
        for name, types in read.items():
            if re.search(rf"option: .*\b{name}\b", text) or name in of_rules:
                types.add(resource_type)
            if "type: patient_location" in text:  # its converter reads the option
                read["foreign_postal_codes"].add(resource_type)
    transform = MAPPINGS_FOLDER.parent / "pipeline/transform"
    shared = "".join((transform / name).read_text(encoding="utf-8") for name in ("events.py", "value_checks.py"))
    for name in ("duplicates", "double_counting"):  # asked by `MappingOptions.applies_duplicates`, and by publication
        read.pop(name)
    assert [name for name, types in read.items() if not types and f"options.{name}" not in shared] == []
    read["data_absent"] -= {"QuestionnaireResponse"}  # shares the rule; an answer has no dataAbsentReason
    for name, types in read.items():
        assert types <= set(resources_of(MappingOptions.model_fields[name])), name


def test_a_crosswalk_changes_patients(runtime: Runtime, tmp_path: Path) -> None:
    file = tmp_path / "crosswalk.csv"
    file.write_text("site,patient_id,same_as_site,same_as_patient_id\none,a,two,b\n")
    other = Runtime(runtime.settings.model_copy(update={"person_crosswalk": file}))
    assert changed(runtime, SiteSettings(name="one"), other) == {"Patient"}
