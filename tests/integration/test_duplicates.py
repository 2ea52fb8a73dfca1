"""Facts that several resources bring, with the option `duplicates: apply`: after any nights, in any order, a warehouse has
the rows that follow from the newest versions alone."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings
from pipeline.warehouse.runtime import Runtime
from tests.integration.support import Warehouse, patient, reference

#: How a Condition says so → its type concept. The first of RANKS that is there counts.
KINDS = {"reported": 32865, "encounter": 32827, "problem": 32840, "other": 32817}
RANKS = [32865, 32827, 32840]
PERSONS = 40
#: The exports by their times; the newest is not loaded last.
ORDER = (0, 1, 3, 2, 5, 4)

Version = tuple[str, str, int, bool]
Newest = dict[str, Version]


def condition(resource_id: str, version: Version) -> dict[str, Any]:
    person, kind, day, is_wrong = version
    categories = {"encounter": "encounter-diagnosis", "problem": "problem-list-item"}
    made: dict[str, Any] = {
        "id": resource_id,
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "44054006"}]},
        "subject": reference("Patient", person),
        "onsetDateTime": f"2025-01-{day:02}",
        "verificationStatus": {"coding": [{"code": "entered-in-error" if is_wrong else "confirmed"}]},
    }
    if kind in categories:
        made["category"] = [{"coding": [{"code": categories[kind]}]}]
    return made | ({"asserter": reference("Patient", person)} if kind == "reported" else {})


def outcomes_by_rule(newest: Newest) -> dict[str, str]:
    """Resource → its outcome."""
    best: dict[tuple[str, int], int] = defaultdict(lambda: len(RANKS))
    for person, kind, day, is_wrong in newest.values():
        if not is_wrong and KINDS[kind] in RANKS:
            best[person, day] = min(best[person, day], RANKS.index(KINDS[kind]))
    found = {}
    for resource_id, (person, kind, day, is_wrong) in newest.items():
        is_covered = KINDS[kind] in RANKS and RANKS.index(KINDS[kind]) > best[person, day]
        found[resource_id] = (
            "excluded:entered_in_error" if is_wrong else "excluded:counted_elsewhere" if is_covered else "loaded"
        )
    return found


@pytest.mark.requirement("themis-issue-202-duplicates")
def test_after_any_nights_the_first_type_that_is_there_counts(warehouse: Warehouse) -> None:
    site = SiteSettings(name="one", mapping=MappingOptions(duplicates="apply"))
    settings = warehouse.runtime.settings.model_copy(update={"sites": {"one": site}})
    place = replace(warehouse, runtime=Runtime(settings, warehouse.runtime.clock))
    own = settings.site_mappings_folder / "one" / "duplicates"
    own.mkdir(parents=True)
    types = "|".join(map(str, RANKS))
    (own / "own.csv").write_text(
        "name,table,same,types\n"
        f"problem_list_and_encounter_diagnosis,condition_occurrence,condition_concept_id|condition_start_date,{types}\n"
    )
    chance = random.Random(202)
    persons = {f"p{number}": patient(f"p{number}") for number in range(PERSONS)}
    landed, newest = [], Newest()
    for night in range(len(ORDER)):
        changed = {
            f"{person}-{kind}{copy}": (person, kind, chance.choice((3, 4)), chance.random() < 0.4)
            for person in persons
            for kind in KINDS
            for copy in range(2)
            if chance.random() < 0.5
        }
        newest |= changed
        lines = [condition(resource_id, version) for resource_id, version in changed.items()]
        chance.shuffle(lines)
        files: Mapping[str, Any] = {"Condition": lines} | ({"Patient": list(persons.values())} if night == 0 else {})
        landed.append(place.land(files))
    for number in ORDER:
        place.ingest(landed[number])
    outcomes = dict(
        place.rows(
            "SELECT resource_id, concat_ws(':', outcome, reason) FROM etl.resource_state"
            " JOIN etl.site_resource_type USING (site_resource_type_id) WHERE resource_type = 'Condition'"
        )
    )
    expected = outcomes_by_rule(newest)
    assert {name: (found, expected[name]) for name, found in outcomes.items() if found != expected[name]} == {}
    assert len(set(expected.values())) == 3
    rows = place.value("SELECT count(*) FROM cdm.condition_occurrence")
    assert rows == sum(outcome == "loaded" for outcome in expected.values())
    (found,) = place.rows("SELECT count(*) FROM etl.reference WHERE state = 'stale'")
    assert found == (0,)
