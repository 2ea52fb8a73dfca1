"""Settings of the CDM's version and of `cdm_source`."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from omop_schema.cdm_fields import column_length, fields
from omop_schema.versions import CdmVersion
from pipeline.core import cdm_source
from pipeline.core.cdm_source import CdmSource
from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import Settings, load_settings


def settings(tmp_path: Path, **variables: str) -> Settings:
    return load_settings({"EPIC_OMOP_HOME": str(tmp_path), **variables})


def test_without_settings_it_is_as_it_was(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert found.cdm_version is CdmVersion.V5_4
    assert found.cdm_source == CdmSource()
    assert found.cdm_source.unnamed == ("cdm_source_name", "cdm_source_abbreviation", "cdm_holder")


def test_a_variable_a_column(tmp_path: Path) -> None:
    texts = {name: f"the {name}"[:25] for name in CdmSource.model_fields if not name.endswith("_date")}
    given = texts | {"source_release_date": "2026-01-31", "cdm_release_date": "2026-02-01"}
    variables = {f"EPIC_OMOP_{name.upper()}": value for name, value in given.items()}
    found = settings(tmp_path, EPIC_OMOP_CDM_VERSION="5.5", **variables)
    assert found.cdm_version is CdmVersion.V5_5
    days = {"source_release_date": date(2026, 1, 31), "cdm_release_date": date(2026, 2, 1)}
    assert found.cdm_source.model_dump() == texts | days
    assert found.cdm_source.unnamed == ()


def test_what_is_not_a_setting_is_known_to_publication() -> None:
    columns = {field.name for field in fields("cdm_source")}
    assert columns - CdmSource.model_fields.keys() == {"cdm_version", "cdm_version_concept_id", "vocabulary_version"}
    assert CdmSource.model_fields.keys() < columns


def test_the_lengths_are_those_of_the_columns() -> None:
    texts = [name for name in CdmSource.model_fields if not name.endswith("_date")]
    lengths = {name: length for name in texts if (length := column_length("cdm_source", name))}
    assert lengths == cdm_source._LENGTHS


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CDM_VERSION", "5.3", "must be one of '5.4' or '5.5'"),
        ("CDM_VERSION", "v5.5", "must be one of '5.4' or '5.5'"),
        ("CDM_SOURCE_ABBREVIATION", "x" * 26, "must have 25 characters at most, and has 26"),
        ("CDM_HOLDER", " ", "must not be blank"),
        ("SOURCE_DESCRIPTION", "a\nb", "nor hold a line break"),
        ("SOURCE_RELEASE_DATE", "yesterday", "must be a date such as"),
    ],
)
def test_what_is_refused_names_the_variable(tmp_path: Path, variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(tmp_path, **{f"EPIC_OMOP_{variable}": value})
    assert f"EPIC_OMOP_{variable}: must" in refused.value.message
    assert said in refused.value.message
