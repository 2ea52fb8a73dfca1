"""Names of code systems: one table for all maps (issue: encounter_class knew one spelling, interpretation five)."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.concepts.code_sets import CodeSets
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.mapping.systems import SystemNames

MAPPINGS = load_mappings(MAPPINGS_FOLDER)


def _systems() -> set[str]:
    named = {entry.system for entries in MAPPINGS.value_maps.values() for entry in entries}
    return named | set(MAPPINGS.code_systems)


def _spellings(system: str) -> Iterator[str]:
    yield system
    yield f"{system}|4.0.1"
    if system.startswith("urn:oid:"):
        yield system.removeprefix("urn:oid:")
        yield system.replace("urn:oid:", "URN:OID:")
        yield system.replace("urn:oid:", "oid:")
        yield f"{system}/"
    elif system.startswith("http"):
        other = (
            system.replace("https://", "http://")
            if system.startswith("https")
            else system.replace("http://", "https://")
        )
        yield from (other, f"{system}/", f"{system}#", f" {system}", system.upper())
        if "/CodeSystem/v3-" in system:
            yield system.replace("http://terminology.hl7.org/CodeSystem/v3-", "http://hl7.org/fhir/v3/")
        elif "terminology.hl7.org/CodeSystem/" in system:
            yield system.replace("http://terminology.hl7.org/CodeSystem/", "http://hl7.org/fhir/")


@pytest.mark.parametrize("system", sorted(_systems()))
def test_every_system_of_every_map_is_known_by_all_its_spellings(system: str) -> None:
    canonical = MAPPINGS.systems.canonical
    assert {spelling: canonical(spelling) for spelling in _spellings(system)} == dict.fromkeys(
        _spellings(system), system
    )


_ACT, _ROLE = "http://terminology.hl7.org/CodeSystem/v3-ActCode", "http://terminology.hl7.org/CodeSystem/v3-RoleCode"
_INTERPRETATION = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"


@pytest.mark.parametrize(
    ("spelling", "system"),
    [
        ("http://terminology.hl7.org/ValueSet/v3-ActEncounterCode", _ACT),
        ("http://hl7.org/fhir/ValueSet/v3-ActEncounterCode", _ACT),
        ("http://hl7.org/fhir/v3/vs/ActEncounterCode", _ACT),
        ("http://hl7.org/fhir/v3/ActEncounterCode/", _ACT),
        ("http://hl7.org/fhir/v3/ServiceDeliveryLocationRoleType", _ROLE),
        ("http://hl7.org/fhir/ValueSet/v3-ServiceDeliveryLocationRoleType", _ROLE),
        ("http://hl7.org/fhir/ValueSet/observation-interpretation", _INTERPRETATION),
        ("http://hl7.org/fhir/ValueSet/v3-ObservationInterpretation", _INTERPRETATION),
        ("https://hl7.org/fhir/v2/0078/", _INTERPRETATION),
        ("http://hl7.org/fhir/v2/0292", "http://hl7.org/fhir/sid/cvx"),
        ("2.16.840.1.113883.6.59/", "http://hl7.org/fhir/sid/cvx"),
        ("http://hl7.org/fhir/sid/icd-9-cm/diagnosis", "http://hl7.org/fhir/sid/icd-9-cm"),
        ("http://hl7.org/fhir/provider-taxonomy", "http://nucc.org/provider-taxonomy"),
        ("oid:2.16.840.1.113883.4.642.1.1092", "http://terminology.hl7.org/CodeSystem/admit-source"),
        ("http://hl7.org/fhir/ValueSet/encounter-admit-source", "http://terminology.hl7.org/CodeSystem/admit-source"),
        ("http://terminology.hl7.org/CodeSystem/gender-identity", "http://hl7.org/fhir/gender-identity"),
        ("urn:oid:2.16.840.1.113883.4.6/", "http://hl7.org/fhir/sid/us-npi"),
    ],
)
def test_value_sets_and_older_names_stand_for_their_systems(spelling: str, system: str) -> None:
    assert MAPPINGS.systems.canonical(spelling) == system


def test_aliases_lead_to_systems_that_maps_know() -> None:
    known = _systems() | {"http://hl7.org/fhir/sid/us-npi"}
    plain = {alias: name for alias, name in MAPPINGS.systems.given.items() if "*" not in name}
    assert {
        alias: MAPPINGS.systems.canonical(alias.replace("*", "x"))
        for alias in plain
        if MAPPINGS.systems.canonical(alias.replace("*", "x")) not in known
    } == {}


def test_a_system_that_no_map_knows_stays_as_it_is() -> None:
    names = SystemNames.of({"urn:oid:1.2": "http://a", "http://old/*": "http://new/*"}, ["http://a", "http://new/x"])
    others = ["HTTP://B/", "1.3", "http://old/y", "", "http://aa"]
    assert [names.canonical(system) for system in others] == others
    assert [names.canonical(system) for system in ("1.2", "https://www.a/", "http://old/x")] == [
        "http://a",
        "http://a",
        "http://new/x",
    ]


def test_names_that_lead_in_a_circle_end() -> None:
    names = SystemNames.of({"http://a": "http://b", "http://b": "http://a"}, [])
    assert names.canonical("http://a") == "http://a"


def test_two_spellings_of_a_coding_are_one() -> None:
    sets = CodeSets(MAPPINGS.systems.canonical)
    one = sets.add_concept(
        {
            "coding": [
                {"system": "http://loinc.org", "code": "1"},
                {"system": "urn:oid:2.16.840.1.113883.6.1", "code": "1"},
            ]
        }
    )
    assert one is not None
    assert sets.codings_of([one]).select("system", "code").rows() == [("http://loinc.org", "1")]


def test_names_go_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(MAPPINGS.systems)).canonical("2.16.840.1.113883.6.1") == "http://loinc.org"
