"""Concepts that a mapping names by vocabulary and code, or by vocabulary and name."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.addresses import country_name
from pipeline.transform.concepts.index import CONCEPT_FILE, CONCEPT_SCHEMA, INDEX_FILE, INDEX_SCHEMA, ConceptIndex
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.mapping.targets import missing_targets, parted_target, standard_of_targets

#: concept_id, name, vocabulary, class, standard concept or NULL
_CONCEPTS = (
    (1, "Georgia", "OSM", "4th level", 1),
    (2, "Georgia", "OSM", "2nd level", 2),
    (3, "Germany", "OSM", "2nd level", 3),
    (4, "Germany", "SNOMED", "Location", 4),
    (5, "Prussia", "OSM", "2nd level", None),
    (6, "Siam", "OSM", "2nd level", 7),
)


@pytest.fixture
def index(tmp_path: Path) -> ConceptIndex:
    rows = [(number, name, "Geography", of, kind, None, None, target) for number, name, of, kind, target in _CONCEPTS]
    pl.DataFrame(rows, schema=CONCEPT_SCHEMA, orient="row").write_parquet(tmp_path / CONCEPT_FILE)
    pl.DataFrame(schema=INDEX_SCHEMA).write_parquet(tmp_path / INDEX_FILE)
    return ConceptIndex(tmp_path, "v1", "hash")


def test_a_name_leads_to_the_standard_concept_of_the_highest_level(index: ConceptIndex) -> None:
    named = {"OSM=georgia": 2, "OSM=Germany": 3, "SNOMED=Germany": 4, "OSM=Siam": 7}
    assert standard_of_targets([*named, "OSM=Prussia", "OSM=Atlantis", "OSM:1", "CVX=Germany"], index) == named


def test_codes_that_are_missing_are_named_and_names_counted_by_vocabulary(index: ConceptIndex) -> None:
    targets = {"OSM=Germany": "concept_maps/country de", "OSM=Atlantis": "concept_maps/country xx"}
    assert missing_targets(targets, index) == []
    lacking = {"X=A b": "concept_maps/country aa", "X=C": "concept_maps/country cc", "OSM:9": "concept_maps/country dd"}
    by_code, by_name = missing_targets(targets | lacking, index)
    assert by_code.startswith("concept_maps/country dd: OSM 9 has no Standard concept in vocabulary v1")
    assert by_name.startswith("concept_maps/country: none of 2 names has a Standard concept of X in vocabulary v1")


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("SNOMED:410516002", ("SNOMED", "410516002", None)),
        ("OSM=Congo (the)", ("OSM", None, "Congo (the)")),
        ("CMS Place of Service:21", ("CMS Place of Service", "21", None)),
        ("OSM:a=b", ("OSM", "a=b", None)),
    ],
)
def test_a_target_has_a_code_or_a_name(target: str, parts: tuple[str, str | None, str | None]) -> None:
    assert parted_target(target) == parts


@pytest.mark.parametrize("target", ["Germany", "OSM=", "OSM: 1", "=x", "", "-1"])
def test_what_is_neither_is_no_target(target: str) -> None:
    with pytest.raises(ValueError, match="expected VOCABULARY"):
        parted_target(target)


def test_countries_are_known_by_two_letters_three_letters_and_three_digits() -> None:
    """ISO 3166-1 has 249 countries; Kosovo has letters in use and no number."""
    entries = load_mappings(MAPPINGS_FOLDER).value_maps["country"]
    names = {entry.code: entry.targets for entry in entries}
    assert all(country_name(code) == code for code in names)  # as the look-up asks for them
    by_letters = {code: targets for code, targets in names.items() if len(code) == 2}
    assert len(by_letters.keys() - {"uk", "xk"}) == 249
    assert len([code for code in names if code.isdigit()]) == 249
    same = [("de", "deu", "276", "germany"), ("kr", "kor", "410", "south korea"), ("ci", "civ", "384", "ivory coast")]
    same += [
        ("us", "usa", "840", "united states of america"),
        ("gb", "gbr", "826", "england"),
        ("tr", "tur", "792", "türkiye"),
    ]
    for group in same:
        assert len({names[code] for code in group}) == 1
