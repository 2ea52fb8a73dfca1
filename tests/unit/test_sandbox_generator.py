"""The synthetic world: the same bytes for the same seed, small steps from day to day, every shape that Epic has."""

from __future__ import annotations

import collections
import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.generator import RESOURCE_TYPES, generate

FIRST_DAY = dt.date(2026, 11, 1)
EPIC_CLASS = "urn:oid:1.2.840.114350.1.72.1.7.7.10.696784.13260"


@pytest.fixture(scope="module")
def lines() -> list[tuple[str, bytes]]:
    return list(generate(200, 1, FIRST_DAY))


@pytest.fixture(scope="module")
def resources(lines: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    readable = []
    for _, line in lines:
        try:
            readable.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return readable


def of_type(resources: list[dict[str, Any]], resource_type: str) -> list[dict[str, Any]]:
    return [resource for resource in resources if resource["resourceType"] == resource_type]


def codings(value: Any) -> list[dict[str, Any]]:
    """Every Coding anywhere in a resource."""
    if isinstance(value, dict):
        own = [value] if {"system", "code"} <= value.keys() and "value" not in value else []
        return own + [coding for part in value.values() for coding in codings(part)]
    return [coding for part in value for coding in codings(part)] if isinstance(value, list) else []


@given(patients=st.integers(0, 4), seed=st.integers(), day=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_same_arguments_same_bytes(patients: int, seed: int, day: int) -> None:
    assert list(generate(patients, seed, FIRST_DAY, day)) == list(generate(patients, seed, FIRST_DAY, day))


def test_another_seed_gives_other_patients() -> None:
    first, second = (dict(generate(5, seed, FIRST_DAY, types=["Patient"])) for seed in (1, 2))
    assert first != second


def test_shares_are_the_whole_once(lines: list[tuple[str, bytes]]) -> None:
    shared = {"Organization", "Location", "Practitioner", "PractitionerRole", "Medication"}
    parts = [list(generate(200, 1, FIRST_DAY, share=(part, 3))) for part in range(3)]
    together = collections.Counter(line for part in parts for line in part if line[0] not in shared)
    assert together == collections.Counter(line for line in lines if line[0] not in shared)


def test_types_are_only_a_filter(lines: list[tuple[str, bytes]]) -> None:
    wanted = ["Condition", "Medication"]
    assert list(generate(200, 1, FIRST_DAY, types=wanted)) == [line for line in lines if line[0] in wanted]


@pytest.mark.parametrize("day", [0, 1, 30])
def test_a_day_later_nearly_all_lines_are_the_same(day: int) -> None:
    before = collections.Counter(line for _, line in generate(250, 1, FIRST_DAY, day))
    after = collections.Counter(line for _, line in generate(250, 1, FIRST_DAY, day + 1))
    same = (before & after).total()
    assert 0.97 <= same / after.total() < 1


def test_what_a_day_brings() -> None:
    hidden = ("Observation",)  # has lines that are broken

    def by_id(day: int) -> dict[str, dict[str, Any]]:
        read = (orjson.loads(line) for kind, line in generate(250, 1, FIRST_DAY, day) if kind not in hidden)
        return {resource["id"]: resource for resource in read if "id" in resource}

    before, after = by_id(1), by_id(2)
    changed = [(before[key], after[key]) for key in before.keys() & after.keys() if before[key] != after[key]]
    assert before.keys() <= after.keys(), "nothing vanishes"
    assert any(new["resourceType"] == "Encounter" for key, new in after.items() if key not in before)
    assert any(old["resourceType"] == "Patient" and old["telecom"] != new["telecom"] for old, new in changed)
    assert any(
        new["resourceType"] == "Condition" and codings(new["verificationStatus"])[0]["code"] == "entered-in-error"
        for _, new in changed
    )
    assert any(old["resourceType"] == "Encounter" and old["status"] == "in-progress" for old, _ in changed)


def test_every_type_and_a_usual_size(lines: list[tuple[str, bytes]]) -> None:
    counts = collections.Counter(kind for kind, _ in lines)
    assert counts.keys() == set(RESOURCE_TYPES)
    assert 40 <= len(lines) / 200 <= 65
    assert counts["Observation"] > len(lines) / 2


def test_ids_are_unique_and_epic_shaped(resources: list[dict[str, Any]]) -> None:
    ids = [resource["id"] for resource in resources if resource["resourceType"] != "OperationOutcome"]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"e[A-Za-z0-9.-]+3", each) for each in ids)
    assert any(len(each) > 64 for each in ids)
    assert any("." in each for each in ids)


def test_references_resolve(resources: list[dict[str, Any]]) -> None:
    known = {f"{each['resourceType']}/{each['id']}" for each in resources if "id" in each}
    named = re.findall(rb'"reference":"([^"#]+)"', b"".join(orjson.dumps(each) for each in resources))
    absent = [each["medicationReference"] for each in resources if _of_absent_medication(each)]
    assert {name.decode() for name in named} - known == {each["reference"] for each in absent}
    assert absent


def _of_absent_medication(resource: dict[str, Any]) -> bool:
    """What is played on purpose: a Medication that is in no export."""
    return bool(resource.get("medicationReference", {}).get("display") == "Trial drug 4711")


SHAPES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "text-only code": lambda r: r["resourceType"] == "Condition" and "coding" not in r["code"],
    "SNOMED by OID": lambda r: any(c["system"] == "urn:oid:2.16.840.1.113883.6.96" for c in codings(r)),
    "ICD-10-CM by OID": lambda r: any(c["system"] == "urn:oid:2.16.840.1.113883.6.90" for c in codings(r)),
    "local coding first": lambda r: (
        r["resourceType"] == "Observation"
        and len(codings(r["code"])) == 2
        and codings(r["code"])[0]["system"].startswith("urn:oid:1.2.840.114350.1.13.0.1.7.")
    ),
    "standard coding first": lambda r: (
        r["resourceType"] == "Observation" and [c["system"] for c in codings(r["code"])][:1] == ["http://loinc.org"]
    ),
    "blood pressure components": lambda r: len(r.get("component", [])) == 2,
    "valueCodeableConcept": lambda r: "valueCodeableConcept" in r,
    "valueString <0.01": lambda r: r.get("valueString") == "<0.01",
    "valueString neg": lambda r: r.get("valueString") == "neg",
    "valueInteger": lambda r: "valueInteger" in r,
    "comparator": lambda r: "comparator" in r.get("valueQuantity", {}),
    "unit without code": lambda r: "unit" in r.get("valueQuantity", {}) and "code" not in r["valueQuantity"],
    "dataAbsentReason": lambda r: "dataAbsentReason" in r,
    "referenceRange": lambda r: "low" in r.get("referenceRange", [{}])[0],
    "interpretation": lambda r: "interpretation" in r,
    "observation without category": lambda r: r["resourceType"] == "Observation" and "category" not in r,
    "no encounter": lambda r: r["resourceType"] == "Observation" and "encounter" not in r,
    "Epic class": lambda r: isinstance(r.get("class"), dict) and r["class"]["system"] == EPIC_CLASS,
    "v3 class": lambda r: isinstance(r.get("class"), dict) and r["class"]["code"] == "IMP",
    "finished without end": lambda r: (
        r["resourceType"] == "Encounter" and r["status"] == "finished" and "end" not in r["period"]
    ),
    "diagnosis with use": lambda r: "use" in r.get("diagnosis", [{}])[0],
    "admission and discharge": lambda r: len(r.get("hospitalization", {})) == 2,
    "medicationReference": lambda r: r.get("medicationReference", {}).get("reference", "").startswith("Medication/"),
    "contained medication": lambda r: "contained" in r,
    "what was given names its order": lambda r: r["resourceType"] == "MedicationAdministration" and "request" in r,
    "given, naming nothing": lambda r: r["resourceType"] == "MedicationAdministration" and "request" not in r,
    "not given": lambda r: r["resourceType"] == "MedicationAdministration" and r["status"] == "not-done",
    "what was dispensed names its prescription": lambda r: "authorizingPrescription" in r,
    "dispensed, naming nothing": lambda r: (
        r["resourceType"] == "MedicationDispense" and "authorizingPrescription" not in r
    ),
    "medicationCodeableConcept": lambda r: "medicationCodeableConcept" in r,
    "partial onset": lambda r: len(r.get("onsetDateTime", "")) in (4, 7),
    "two races": lambda r: any(
        e["url"].endswith("us-core-race") and len(e["extension"]) > 2 for e in r.get("extension", [])
    ),
    "deceasedDateTime": lambda r: "deceasedDateTime" in r,
    "deceasedBoolean": lambda r: r.get("deceasedBoolean") is True,
    "planned": lambda r: r.get("status") == "planned",
    "cancelled": lambda r: r.get("status") == "cancelled",
    "entered-in-error": lambda r: r.get("status") == "entered-in-error",
    "OperationOutcome": lambda r: r["resourceType"] == "OperationOutcome",
    "birth date of a month or year": lambda r: len(r.get("birthDate", "1234-12-12")) < 10,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_is_present(resources: list[dict[str, Any]], shape: str) -> None:
    assert any(SHAPES[shape](resource) for resource in resources)


def test_no_last_updated(lines: list[tuple[str, bytes]]) -> None:
    assert not any(b"lastUpdated" in line for _, line in lines)


def test_instants_are_utc_and_some_evenings_cross_midnight(resources: list[dict[str, Any]]) -> None:
    starts = [resource["period"]["start"] for resource in of_type(resources, "Encounter")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", start) for start in starts)
    assert any(start[11:13] in ("01", "02", "03", "04") for start in starts)  # evenings in Chicago


def test_nothing_happens_before_birth(resources: list[dict[str, Any]]) -> None:
    """Nothing but what is played on purpose: visits of another time, and persons whose birth is still to come."""
    tomorrow = FIRST_DAY.isoformat()
    born = {
        f"Patient/{each['id']}": each["birthDate"]
        for each in of_type(resources, "Patient")
        if each["birthDate"] < tomorrow
    }
    long_before = 0
    for encounter in of_type(resources, "Encounter"):
        start, birth = encounter["period"]["start"], born.get(encounter["subject"]["reference"], "")
        if int(start[:4]) < int(birth[:4] or 0) - 60:
            long_before += 1
        else:
            assert start[: len(birth)] >= birth
    assert long_before == 5


def test_broken_lines(lines: list[tuple[str, bytes]]) -> None:
    unreadable, wrong = [], []
    for _, line in lines:
        try:
            resource = orjson.loads(line)
        except orjson.JSONDecodeError:
            unreadable.append(line)
            continue
        if resource["resourceType"] == "Observation" and (
            "subject" not in resource
            or resource["status"] == "finalised"
            or isinstance(resource.get("valueQuantity", {}).get("value"), str)
            or b"\\u0000" in line
        ):
            wrong.append(line)
    assert len(unreadable) >= 1
    assert len(wrong) >= 4
    assert len(unreadable + wrong) < len(lines) / 500


def test_broken_lines_are_one_in_thousands() -> None:
    observations = [line for _, line in generate(800, 3, FIRST_DAY, types=["Observation"])]
    assert sum(b"finalised" in line for line in observations) == 3  # patient 0, and one of every 400


def test_every_standard_code_is_in_the_list(resources: list[dict[str, Any]]) -> None:
    """The demonstration vocabulary is made from codes.csv: no LOINC, SNOMED, RxNorm … may come from elsewhere."""
    aliases = {
        "urn:oid:2.16.840.1.113883.6.96": "http://snomed.info/sct",
        "urn:oid:2.16.840.1.113883.6.90": "http://hl7.org/fhir/sid/icd-10-cm",
    }
    listed = {(code.system, code.code) for code in code_book().codes}
    standard = {system for system, _ in listed if not system.startswith("urn:oid:1.2.840.114350")}
    used = {(aliases.get(c["system"], c["system"]), c["code"]) for r in resources for c in codings(r)}
    assert {each for each in used if each[0] in standard} <= listed


def test_code_list_is_sound() -> None:
    codes = code_book().codes
    assert len({(code.system, code.code) for code in codes}) == len(codes)
    assert all(code.display and code.use for code in codes)
    units = {code.code for code in code_book().of("unit")}
    assert {code.unit for code in codes if code.unit} <= units
    known = {code.code for code in codes}
    assert {partner for code in codes for partner in code.partner} <= known
