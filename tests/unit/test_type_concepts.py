"""Which type a record has in every mapping: by evidence, and who reported it before all else (f2o-051, 052, 053)."""

from __future__ import annotations

import pytest

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.sql_on_fhir.r4 import elements_of
from pipeline.transform.mapping.mappings import load_mappings

MAPPINGS = load_mappings(MAPPINGS_FOLDER)
EVENTS = [
    pytest.param(mapping, view, id=f"{name}-{view.name}")
    for name, mapping in sorted(MAPPINGS.resources.items())
    for view in mapping.views
    if view.kind == "event"
]
GENERAL, REPORTED, SURVEY = 32817, 32865, 32883

#: Resources that are evidence by what they are, whatever stands in them → the type that follows.
EVIDENT = {
    "DocumentReference": 32831,  # a note
    "MedicationAdministration": 32818,  # given, in the hospital's record
    "MedicationDispense": 32825,  # handed out
    "QuestionnaireResponse": SURVEY,
}
#: The same of single views: a text of a report is a note, what an encounter says of its end is of the encounter.
EVIDENT_VIEWS = {
    ("DiagnosticReport", "conclusion"): 32831,
    ("DiagnosticReport", "presented_form"): 32831,
    ("Encounter", "discharge_against_advice"): 32827,
    ("Observation", "note"): 32831,
}

#: Elements of R4 that say who reported what a resource says. A performer did it, but of an Observation.
REPORTERS = ("asserter", "informationSource", "reported", "author", "source")


@pytest.mark.requirement("f2o-052")
@pytest.mark.parametrize(("mapping", "view"), EVENTS)
def test_without_evidence_the_type_is_the_most_general(mapping, view):
    """The last rule is the one of a resource without category, source and encounter: 32817 for all but a few."""
    last = view.type_concept_id[-1]
    expected = EVIDENT_VIEWS.get((mapping.resource, view.name), EVIDENT.get(mapping.resource, GENERAL))
    assert last.when is None
    assert last.concept_ids == (expected,)


@pytest.mark.requirement("f2o-053")
@pytest.mark.parametrize(("mapping", "view"), EVENTS)
def test_who_reported_it_comes_before_all_but_surveys(mapping, view):
    """In every mapping whose resource can say so, and in each of its views."""
    can_say = [name for name in REPORTERS if name in (elements_of(mapping.resource) or {})]
    if mapping.resource == "Observation":
        can_say = ["performer"]
    types = {**mapping.resource_view.column_types, **view.column_types}
    by_report = [
        rule for rule in view.type_concept_id if rule.when and str(types[rule.when]).startswith("reported_by_patient")
    ]
    if not can_say or EVIDENT.get(mapping.resource) == SURVEY:
        assert by_report == []
        return
    assert [rule.concept_ids for rule in by_report] == [(REPORTED,)]
    before = view.type_concept_id[: view.type_concept_id.index(by_report[0])]
    assert {concept for rule in before for concept in rule.concept_ids} <= {SURVEY, REPORTED}
    assert any(name in str(types[by_report[0].when]) for name in can_say)
