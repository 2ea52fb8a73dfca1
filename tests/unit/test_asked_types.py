"""Which types a site is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.settings import MAPPINGS_FOLDER, Settings, SiteSettings
from pipeline.extract.asked_types import NOT_EXPORTED, asked_types, resources_of_server, with_asked_types
from pipeline.extract.rest.crawl import crawl_types
from pipeline.extract.smart.tokens import scopes_for

OWN = """\
resource: Goal
views:
  - {name: goal, kind: resource, select: [{column: [{name: status, path: lifecycleStatus, type: code}]}]}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, site_mappings=tmp_path / "own")


def test_a_site_that_names_none_is_asked_for_all_that_is_mapped(settings: Settings) -> None:
    found = asked_types(settings, SiteSettings(name="north"))
    assert found[0] == "Patient"
    assert set(found) == {file.stem for file in MAPPINGS_FOLDER.glob("*.yaml")} - NOT_EXPORTED
    assert {"AllergyIntolerance", "Device", "Coverage"} <= set(found)


def test_its_own_mappings_count(settings: Settings, tmp_path: Path) -> None:
    own = tmp_path / "own" / "north"
    own.mkdir(parents=True)
    (own / "Goal.yaml").write_text(OWN)
    (own / "unmapped_types.csv").write_text("resource_type,reason\nCoverage,not_here\n")
    found = asked_types(settings, SiteSettings(name="north"))
    assert "Goal" in found
    assert "Coverage" not in found
    assert "Coverage" in asked_types(settings, SiteSettings(name="south"))


def test_what_a_site_names_is_what_it_is_asked_for(settings: Settings) -> None:
    site = SiteSettings(name="north", resource_types=("Observation", "Basic"))
    assert with_asked_types(settings, site) is site
    assert asked_types(settings, site) == ("Observation", "Basic")


def test_scopes_and_crawls_go_by_the_same_types(settings: Settings) -> None:
    site = with_asked_types(settings, SiteSettings(name="north"))
    assert "system/Coverage.read" in scopes_for(site.asked_types).split()
    crawled = crawl_types(site)
    assert crawled[0] == "Patient"
    assert "Coverage" in crawled
    assert not {"Questionnaire", "Medication", "Binary"} & set(crawled), "no patient has them"


@pytest.mark.parametrize(
    ("statement", "types"),
    [
        ({"rest": [{"resource": [{"type": "Patient"}, {"type": "Goal"}]}]}, {"Patient", "Goal"}),
        ({"rest": [{"resource": 5}, "x", {"resource": ["y", {"type": "Goal"}]}]}, {"Goal"}),
        ({"rest": {}}, set()),
        ({}, set()),
    ],
)
def test_types_of_a_capability_statement(statement: dict[str, object], types: set[str]) -> None:
    assert resources_of_server(statement).keys() == types
