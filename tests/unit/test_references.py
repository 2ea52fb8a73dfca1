"""What a FHIR Reference becomes: every form, for every kind of target."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigurationError
from pipeline.identifier_secret import SECRET_FILE, identifier_secret
from pipeline.omop.identifiers import IDENTIFIED_TYPES, IdentifierKeys, identifier_keys, queried_identifier
from pipeline.omop.keys import SurrogateKeys
from pipeline.omop.references import TARGETS, ReferenceProblem, ReferenceReader, without_problems
from pipeline.settings import Settings, load_settings

#: The machine may be busy; what a test does is what counts.
UNTIMED = settings(deadline=None)
IDS = st.from_regex(r"[A-Za-z0-9\-.]{1,80}", fullmatch=True)

KEYS = SurrogateKeys("north", "salt")
IDENTIFIERS = IdentifierKeys("north", b"a secret of the instance")
NPI = "http://hl7.org/fhir/sid/us-npi"


def read(reference: Any, target: str) -> int | None:
    return ReferenceReader(KEYS, IDENTIFIERS).one(TARGETS[target])(reference)


def first(references: Any) -> int | None:
    return ReferenceReader(KEYS, IDENTIFIERS).first(TARGETS["Practitioner"])(references)


#: Reference → what it is as a reference to each kind of target: Type/id, ("identifier", type, system, value), the name
#: of a problem, or None for nothing to follow.
_READ = "reference_unreadable"
_TYPE = "reference_type_unusable"
_BY_ID = "reference_by_identifier"
_CONTAINED = "reference_contained"
FORMS: list[tuple[str, dict[str, Any], str, Any]] = [
    ("relative", {"reference": "Practitioner/d1"}, "Practitioner", "Practitioner/d1"),
    ("role", {"reference": "PractitionerRole/r1"}, "Practitioner", "PractitionerRole/r1"),
    ("absolute", {"reference": "https://fhir.example.org/R4/PractitionerRole/r1"}, "Practitioner", "PractitionerRole/r1"),
    ("versioned", {"reference": "Practitioner/d1/_history/3"}, "Practitioner", "Practitioner/d1"),
    ("version of a canonical", {"reference": "Practitioner/d1|2"}, "Practitioner", "Practitioner/d1"),
    ("absolute, such a version", {"reference": "https://x.org/R4/Practitioner/d1|2"}, "Practitioner", "Practitioner/d1"),
    ("urn, such a version", {"reference": "urn:uuid:d1|2"}, "Practitioner", "Practitioner/d1"),
    ("such a version and no id", {"reference": "Practitioner/|2"}, "Practitioner", _READ),
    ("both", {"reference": "https://x.org/R4/Practitioner/d1/_history/3"}, "Practitioner", "Practitioner/d1"),
    ("urn", {"reference": "urn:uuid:d1"}, "Practitioner", "Practitioner/d1"),
    ("urn with type", {"reference": "urn:uuid:r1", "type": "PractitionerRole"}, "Practitioner", "PractitionerRole/r1"),
    (
        "urn with the URL of a type",
        {"reference": "urn:uuid:r1", "type": "http://hl7.org/fhir/StructureDefinition/PractitionerRole"},
        "Practitioner",
        "PractitionerRole/r1",
    ),
    ("urn of a patient", {"reference": "urn:uuid:p1", "type": "Patient"}, "Practitioner", _TYPE),
    ("patient", {"reference": "Patient/p1"}, "Practitioner", _TYPE),
    ("relative of the patient", {"reference": "RelatedPerson/x"}, "Practitioner", _TYPE),
    ("device", {"reference": "Device/x"}, "Practitioner", _TYPE),
    ("team", {"reference": "CareTeam/x"}, "Practitioner", _TYPE),
    ("organization", {"reference": "Organization/o1"}, "Practitioner", _TYPE),
    ("contained", {"reference": "#d1"}, "Practitioner", _CONTAINED),
    ("display", {"display": "Nurse on duty"}, "Practitioner", None),
    ("nothing", {}, "Practitioner", None),
    ("text", {"reference": "Dr. Example"}, "Practitioner", _READ),
    ("empty text", {"reference": ""}, "Practitioner", _READ),
    ("oid", {"reference": "urn:oid:1.2.3"}, "Practitioner", _READ),
    ("lower case", {"reference": "practitioner/d1"}, "Practitioner", _READ),
    ("conditional", {"reference": f"Practitioner?identifier={NPI}|12"}, "Practitioner", ("Practitioner", NPI, "12")),
    (
        "conditional whose system looks like a reference",
        {"reference": "Practitioner?identifier=http://x.org/Npi/Value|12"},
        "Practitioner",
        ("Practitioner", "http://x.org/Npi/Value", "12"),
    ),
    (
        "conditional, escaped for an address",
        {"reference": "Practitioner?identifier=http%3A%2F%2Fhl7.org%2Ffhir%2Fsid%2Fus-npi%7C12"},
        "Practitioner",
        ("Practitioner", NPI, "12"),
    ),
    (
        "conditional and absolute",
        {"reference": f"https://x.org/R4/Practitioner?identifier={NPI}|12"},
        "Practitioner",
        ("Practitioner", NPI, "12"),
    ),
    ("conditional role", {"reference": "PractitionerRole?identifier=a|b"}, "Practitioner", ("PractitionerRole", "a", "b")),
    ("conditional, any system", {"reference": "Practitioner?identifier=12"}, "Practitioner", ("Practitioner", None, "12")),
    ("conditional, no system", {"reference": "Practitioner?identifier=|12"}, "Practitioner", ("Practitioner", "", "12")),
    ("conditional, no value", {"reference": "Practitioner?identifier=a|"}, "Practitioner", _READ),
    ("conditional, a list", {"reference": "Practitioner?identifier=a|1,a|2"}, "Practitioner", _READ),
    ("conditional by name", {"reference": "Practitioner?name=Example"}, "Practitioner", _READ),
    ("conditional by two", {"reference": "Practitioner?identifier=a|1&active=true"}, "Practitioner", _READ),
    ("conditional by type", {"reference": "Practitioner?identifier:of-type=a|b|1"}, "Practitioner", _READ),
    ("conditional patient", {"reference": "Patient?identifier=a|1"}, "Practitioner", _TYPE),
    (
        "identifier",
        {"identifier": {"system": NPI, "value": "12"}},
        "Practitioner",
        ("Practitioner", NPI, "12"),
    ),
    (
        "identifier with white space",
        {"identifier": {"system": f" {NPI}", "value": "12 "}},
        "Practitioner",
        ("Practitioner", NPI, "12"),
    ),
    (
        "identifier of a role",
        {"type": "PractitionerRole", "identifier": {"system": "a", "value": "12"}},
        "Practitioner",
        ("PractitionerRole", "a", "12"),
    ),
    ("identifier of a patient", {"type": "Patient", "identifier": {"value": "12"}}, "Practitioner", _TYPE),
    ("identifier without a value", {"identifier": {"system": NPI, "value": " "}}, "Practitioner", _READ),
    ("identifier without a system", {"identifier": {"value": "12"}}, "Practitioner", ("Practitioner", "", "12")),
    (
        "identifier beside a reference",
        {"reference": "Practitioner/d1", "identifier": {"system": NPI, "value": "12"}},
        "Practitioner",
        "Practitioner/d1",
    ),
    (
        "identifier beside a contained resource",
        {"reference": "#d1", "identifier": {"system": NPI, "value": "12"}},
        "Practitioner",
        ("Practitioner", NPI, "12"),
    ),
    ("organization", {"reference": "Organization/o1"}, "Organization", "Organization/o1"),
    ("organization's location", {"reference": "Location/l1"}, "Organization", "Location/l1"),
    ("organization by identifier", {"identifier": {"system": "a", "value": "1"}}, "Organization", ("Organization", "a", "1")),
    (
        "location by identifier",
        {"reference": "Location?identifier=https://github.com/synthetichealth/synthea|4f0d"},
        "Location",
        ("Location", "https://github.com/synthetichealth/synthea", "4f0d"),
    ),
    ("practitioner as a place", {"reference": "Practitioner/d1"}, "Organization", _TYPE),
    ("patient", {"reference": "Patient/p1"}, "Patient", "Patient/p1"),
    ("another subject", {"reference": "Group/g1"}, "Patient", "Group/g1"),
    ("patient by identifier", {"identifier": {"system": "a", "value": "MRN-1"}}, "Patient", _BY_ID),
    ("patient by condition", {"reference": "Patient?identifier=a|MRN-1"}, "Patient", _BY_ID),
    ("patient contained", {"reference": "#p1"}, "Patient", _CONTAINED),
    ("patient as text", {"reference": "Ann Example"}, "Patient", _READ),
    ("encounter by identifier", {"identifier": {"value": "CSN-1"}}, "Encounter", _BY_ID),
    ("encounter contained", {"reference": "#e"}, "Encounter", _CONTAINED),
    ("episode", {"reference": "EpisodeOfCare/x"}, "Encounter", None),
    ("medication contained", {"reference": "#m"}, "Medication", None),
    ("medication by identifier", {"identifier": {"value": "1"}}, "Medication", _BY_ID),
    ("procedure as diagnosis", {"reference": "Procedure/x"}, "Condition", "Procedure/x"),
]  # fmt: skip


def _expected(what: Any) -> int | None:
    if what is None:
        return None
    if isinstance(what, tuple):
        return IDENTIFIERS.of(*what)
    return KEYS.of(*what.split("/")) if "/" in what else ReferenceProblem[what].value


@pytest.mark.parametrize(("_name", "reference", "target", "what"), FORMS, ids=[f"{row[2]}: {row[0]}" for row in FORMS])
def test_every_form_of_a_reference(_name: str, reference: dict[str, Any], target: str, what: Any) -> None:
    assert read(reference, target) == _expected(what)


@UNTIMED
@given(st.sampled_from(["Patient", "Encounter", "Practitioner", "Location"]), IDS)
def test_a_reference_meets_its_target(resource_type: str, resource_id: str) -> None:
    target = KEYS.of(resource_type, resource_id)
    assert read({"reference": f"{resource_type}/{resource_id}"}, resource_type) == target
    assert read({"reference": f"https://x.org/R4/{resource_type}/{resource_id}/_history/2"}, resource_type) == target
    assert read({"reference": f"urn:uuid:{resource_id}"}, resource_type) == target


@pytest.mark.parametrize("reference", [{"reference": 12}, {"identifier": "12"}, {"identifier": {"value": 12}}])
def test_another_shape_is_an_error(reference: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        read(reference, "Practitioner")


def test_the_first_that_can_be_a_provider_counts() -> None:
    device, role = {"reference": "Device/x"}, {"reference": "PractitionerRole/r1"}
    found = KEYS.of("PractitionerRole", "r1")
    assert first([device, role, {"reference": "Practitioner/d1"}]) == found
    assert first(role) == found
    assert first([None, role]) == found
    assert first([{"display": "somebody"}, device]) == ReferenceProblem.reference_type_unusable
    assert first([]) is None
    with pytest.raises(ValueError, match="expected a Reference"):
        first(["Practitioner/d1"])
    with pytest.raises(ValueError, match="expected a Reference"):
        first("Practitioner/d1")


def test_keys_of_identifiers_are_told_each_time() -> None:
    """A chunk says by which keys it refers, also when another one did before it."""
    reader = ReferenceReader(KEYS, IDENTIFIERS)
    convert = reader.one(TARGETS["Practitioner"])
    for _ in range(2):
        key = convert({"reference": "Practitioner?identifier=a|1"})
        assert reader.taken_keys() == [key]
    assert reader.taken_keys() == []


# --- identifiers ----------------------------------------------------------------------------------------------------


@UNTIMED
@given(st.sampled_from(IDENTIFIED_TYPES), st.text(min_size=1), st.text(min_size=1))
def test_a_reference_by_identifier_meets_the_resource_that_has_it(kind: str, system: str, value: str) -> None:
    identifier = {"system": system, "value": value}
    own = identifier_keys(IDENTIFIERS, kind, any_system=False)(identifier)
    target = TARGETS["Practitioner" if kind.startswith("Practitioner") else kind]
    found = ReferenceReader(KEYS, IDENTIFIERS).one(target)({"type": kind, "identifier": identifier})
    assert found == (ReferenceProblem.reference_unreadable if own is None else own)


@pytest.mark.parametrize("kind", ["Patient", "RelatedPerson", "Encounter", "Person", "Coverage"])
def test_no_other_types_have_keys(kind: str) -> None:
    with pytest.raises(ValueError, match="not compared"):
        IDENTIFIERS.of(kind, "a", "MRN-1")


def test_keys_differ_by_all_that_matters() -> None:
    others = IdentifierKeys("south", b"a secret of the instance"), IdentifierKeys("north", b"another secret ........")
    keys = [one.of("Practitioner", "a", "1") for one in (IDENTIFIERS, *others)]
    keys += [IDENTIFIERS.of("Practitioner", system, value) for system, value in (("a", "2"), ("", "1"), (None, "1"))]
    keys += [IDENTIFIERS.of("Location", "a", "1"), IDENTIFIERS.of("Practitioner", "a1", "")]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("query", "found"),
    [(r"identifier=a\|b|1\,2", ("a|b", "1,2")), ("identifier= a | 1 ", ("a", "1")), ("identifier=a|b|c", None),
     ("identifier", None), ("", None), ("identifier=", None), ("identifier=|", None)],
)  # fmt: skip
def test_tokens(query: str, found: tuple[str | None, str] | None) -> None:
    assert queried_identifier(query) == found


# --- problems as issues ---------------------------------------------------------------------------------------------


def test_problems_become_issues() -> None:
    target = KEYS.of("Practitioner", "d1")
    rows = pl.DataFrame(
        {"surrogate_id": [10, 11, 12], "provider_id": [4, target, None], "person_id": [target, 3, None]}
    )
    followed, problems = without_problems(rows, ["provider_id", "person_id"])
    assert followed["provider_id"].to_list() == [None, target, None]
    assert followed["person_problem"].to_list() == [None, "reference_by_identifier", None]
    assert {name: found.rows() for name, found in problems.items()} == {
        "provider_id": [(10, "reference_type_unusable")],
        "person_id": [(11, "reference_by_identifier")],
    }


# --- the secret -----------------------------------------------------------------------------------------------------


def test_the_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    found = Settings(home=tmp_path / "home")
    secret = identifier_secret(found)
    file = found.home / SECRET_FILE
    assert identifier_secret(found) == secret
    assert len(secret) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in found.home.iterdir()] == [SECRET_FILE]


def test_a_secret_that_is_set_needs_no_file(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    found = load_settings({"EPIC_OMOP_HOME": home, "EPIC_OMOP_IDENTIFIER_KEY": "0123456789abcdef"})
    assert identifier_secret(found) == b"0123456789abcdef"
    assert "0123456789abcdef" not in repr(found)
    assert not Path(home).exists()


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40])
def test_a_secret_that_is_none_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SECRET_FILE).write_bytes(content)
    with pytest.raises(ConfigurationError) as error:
        identifier_secret(Settings(home=tmp_path))
    assert SECRET_FILE in error.value.message
    assert "short" not in error.value.message.replace("shorter", "")
