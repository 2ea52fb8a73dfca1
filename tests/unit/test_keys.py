"""References and surrogate ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fhir.identity import SurrogateKeys, content_key, parse_reference, signed

#: The machine may be busy; what a test does is what counts.
UNTIMED = settings(deadline=None)

TYPES = st.sampled_from(["Patient", "Encounter", "Practitioner", "MedicationRequest"])
IDS = st.from_regex(r"[A-Za-z0-9\-.]{1,80}", fullmatch=True)


@UNTIMED
@given(
    TYPES,
    IDS,
    st.sampled_from(["", "https://fhir.example.org/api/FHIR/R4/", "http://localhost:8080/"]),
    st.integers(1, 99),
)
def test_every_literal_form_names_type_and_id(resource_type, resource_id, base, version):
    reference = f"{base}{resource_type}/{resource_id}"
    assert parse_reference(reference) == (resource_type, resource_id)
    assert parse_reference(f"{reference}/_history/{version}") == (resource_type, resource_id)
    assert parse_reference(f"urn:uuid:{resource_id}", resource_type) == (resource_type, resource_id)


@pytest.mark.parametrize(
    "reference",
    ["", "Patient", "Patient/", "/x", "patient/x", "#contained", "urn:uuid:x", "urn:oid:1.2.3", "Patient?identifier=4711",
     "Patient/x?y", "Practitioner?identifier=http://x.org/Npi/Value|12",
     "Practitioner?identifier=http://x.org/Npi/12", "Patient/x y", "https://fhir.example.org/", "Patient/x/", "12/x"],
)  # fmt: skip
def test_what_names_no_resource_gives_none(reference):
    assert parse_reference(reference) is None


@UNTIMED
@given(st.text(max_size=60))
def test_any_text_gives_a_pair_or_none(text):
    parsed = parse_reference(text, "Patient")
    assert parsed is None or (parsed[0] and parsed[1] is not None)


@UNTIMED
@given(st.one_of(st.integers(), st.booleans(), st.lists(st.text()), st.dictionaries(st.text(), st.text())))
def test_a_reference_that_is_no_string_is_told(value):
    with pytest.raises(ValueError, match="expected a string"):
        parse_reference(value)


def test_surrogate_ids_stay_the_same_in_every_release():
    """They are kept in the warehouse: a change would give every resource a new identity."""
    assert SurrogateKeys("north").of("Patient", "p1") == SurrogateKeys("north").of("Patient", "p1")
    assert SurrogateKeys("north").of("Patient", "p1") == 3333249948439079627
    assert content_key("location", None, "TX") == 7971170610370327076


@pytest.mark.requirement("f2o-021")
@UNTIMED
@given(st.lists(st.tuples(st.sampled_from(["north", "south"]), st.sampled_from(["", "salt"]), TYPES, IDS), unique=True))
def test_surrogate_ids_are_distinct_by_site_salt_type_and_id(resources):
    ids = {SurrogateKeys(site, salt).of(kind, name) for site, salt, kind, name in resources}
    assert len(ids) == len(resources)
    assert all(-(2**63) <= number < 2**63 for number in ids)


@UNTIMED
@given(st.lists(st.one_of(st.none(), st.text(max_size=5)), max_size=4))
def test_content_keys_do_not_tell_none_from_nothing_but_keep_positions(parts):
    assert content_key(*parts) == content_key(*[part or "" for part in parts])
    assert content_key(*parts, "x") != content_key(*parts, None, "x")


@UNTIMED
@given(st.integers(0, 2**64 - 1))
def test_signed_is_one_to_one(value):
    assert signed(value) % 2**64 == value
    assert -(2**63) <= signed(value) < 2**63
