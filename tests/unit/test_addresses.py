"""Addresses → location rows by content; a patient's keeps state, three-digit zip and country only."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.transform.addresses import RESTRICTED_ZIP3, Addresses

#: The machine may be busy; what a test does is what counts.
UNTIMED = settings(deadline=None)

TEXTS = st.one_of(st.none(), st.text(max_size=12))


def patient_row(**address):
    addresses = Addresses()
    key = addresses.of_patient({"address": [address]})
    rows = addresses.frame().to_dicts()
    assert [row["location_id"] for row in rows] == ([] if key is None else [key])
    return rows[0] if rows else None


@pytest.mark.requirement("f2o-022")
@UNTIMED
@given(st.text(max_size=8), TEXTS, TEXTS, st.text(min_size=1, max_size=20))
def test_a_patients_address_never_holds_more_than_state_zip3_and_country(zip_code, state, country, street):
    row = patient_row(line=[street], city="Springfield", postalCode=zip_code, state=state, country=country)
    if row:
        assert row["address_1"] is None
        assert row["city"] is None
        assert row["zip"] is None or re.fullmatch("[0-9]{3}", row["zip"])
        assert row["zip"] not in RESTRICTED_ZIP3
        assert row["state"] is None or len(row["state"]) == 2


@pytest.mark.parametrize("prefix", sorted(RESTRICTED_ZIP3))
def test_restricted_prefixes_become_000(prefix):
    assert patient_row(postalCode=f"{prefix}01")["zip"] == "000"
    assert patient_row(postalCode=f"{prefix}01-1234")["zip"] == "000"


def test_the_list_of_restricted_prefixes_is_the_regulations():
    """45 CFR 164.514(b)(2)(i)(B) by the Census of 2000: 17 prefixes."""
    assert len(RESTRICTED_ZIP3) == 17


@pytest.mark.parametrize("zip_code", ["", "78", "K1A 0B1", "²³4", "７８７０１", "7-8701", "2139", "1010", "21391234"])
def test_what_is_no_us_zip_is_left_out(zip_code):
    assert patient_row(postalCode=zip_code, state="TX")["zip"] is None


@pytest.mark.requirement("themis-person-location-granularity")
@pytest.mark.parametrize("zip_code", ["787", "78701", "78701-", "78701 1234", " 78701 - 1234 ", "787011234"])
def test_a_zip_is_known_however_it_is_written(zip_code):
    assert patient_row(postalCode=zip_code)["zip"] == "787"


@pytest.mark.parametrize("country", ["US", "U.S.A.", "United  States", "PR", "GUM", "840"])
def test_zips_of_the_united_states_are_those_of_their_territories_too(country):
    assert patient_row(postalCode="96910", country=country)["zip"] == "969"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("53593-9179", "535939179"),
        ("53593 9179", "535939179"),
        ("53593-", "53593"),
        ("53593", "53593"),
        ("1010", "1010"),
    ],
)
def test_a_sites_zip_has_no_hyphen_however_it_is_written(code, expected):
    addresses = Addresses()
    addresses.of_site({"address": {"postalCode": code}})
    assert addresses.frame()["zip"].to_list() == [expected]


@pytest.mark.requirement("themis-person-location-granularity")
def test_an_address_that_has_ended_is_the_former_one():
    addresses = Addresses()
    former = {"use": "home", "state": "CA", "period": {"start": "2001-01-01", "end": "2010-01-01"}}
    addresses.of_patient({"address": [former, {"use": "home", "state": "TX", "period": {"start": "2010-01-01"}}]})
    addresses.of_patient({"address": [former]})
    assert addresses.frame()["state"].to_list() == ["TX", "CA"]


@pytest.mark.parametrize(
    ("code", "country", "state", "of_site", "of_patient"),
    [
        ("53593-9179", "US", None, "535939179", "535"),
        ("53593 9179", "US", None, "535939179", "535"),
        ("53593–9179", None, "WI", "535939179", "535"),
        ("53593 - 9179", None, None, "535939179", "535"),
        ("53593-", None, None, "53593", "535"),
        ("535939179", "U.S.A.", None, "535939179", "535"),
        ("535", "USA", None, "535", "535"),
        ("2134", None, None, "2134", None),  # Boston without its zero, or Sydney's neighbour
        ("53593-917", "US", None, "53593-917", None),
        ("00901-1234", "Puerto Rico", None, "009011234", "009"),
        ("96910", "GU", None, "96910", "969"),
        ("10115", "DE", None, "10115", None),
        ("80331", None, "BY", "80331", None),  # Munich
        ("01310-100", "Brazil", None, "01310-100", None),
        ("1234-567", "PT", None, "1234-567", None),
        ("150-0001", "JP", None, "150-0001", None),
        ("SW1A 1AA", "GB", None, "SW1A 1AA", None),
        ("A65 F4E2", "IE", None, "A65 F4E2", None),
    ],
)
def test_postal_codes_of_sites_are_whole_and_those_of_patients_three_digits(code, country, state, of_site, of_patient):
    address = {"postalCode": code, "country": country, "state": state, "city": "Springfield"}
    addresses = Addresses()
    addresses.of_site({"address": {name: text for name, text in address.items() if text}})
    assert addresses.frame()["zip"].to_list() == [of_site]
    row = patient_row(**{name: text for name, text in address.items() if text})
    assert (row["zip"] if row else None) == of_patient


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        *[
            ("TX", "TX"),
            (" tx ", "TX"),
            ("Texas", "TX"),
            ("west  virginia", "WV"),
            ("Tex", None),
            ("", None),
            (None, None),
        ],
        *[("N.Y.", "NY"), ("D.C.", "DC"), ("Washington, D.C.", "DC"), ("US-WI", "WI"), ("Virgin Islands, U.S.", "VI")],
        *[
            ("Armed Forces Europe", "AE"),
            ("Québec", "QC"),
            ("British Columbia", "BC"),
            ("CA-ON", "ON"),
            ("Bayern", None),
        ],
        *[("Marshall Islands", "MH"), ("N. Carolina", None), ("55", None)],
    ],
)
def test_a_state_is_a_two_letter_code_or_nothing(state, expected):
    assert patient_row(state=state, postalCode="78701")["state"] == expected


@UNTIMED
@given(st.lists(st.tuples(st.sampled_from(["TX", "VT"]), st.sampled_from(["78701", "78702", "05401"])), max_size=10))
def test_equal_content_is_one_row_with_one_key(contents):
    addresses = Addresses()
    keys = [addresses.of_patient({"address": [{"state": state, "postalCode": code}]}) for state, code in contents]
    meanings = [(state, code[:3]) for state, code in contents]
    assert len(set(keys)) == len(set(meanings)) == addresses.frame().height
    assert addresses.frame().is_empty()


def test_the_current_home_address_is_preferred():
    addresses = Addresses()
    old, work, home = ({"use": use, "state": state} for use, state in (("old", "WI"), ("work", "IL"), ("home", "TX")))
    for given_addresses, state in (([old, work, home], "TX"), ([old, work], "IL"), ([old], "WI")):
        addresses.of_patient({"address": given_addresses})
        assert addresses.frame()["state"].to_list() == [state]


def test_no_address_no_location():
    addresses = Addresses()
    assert addresses.of_patient({}) is None
    assert addresses.of_patient({"address": []}) is None
    assert addresses.of_patient({"address": [{"city": "Springfield"}]}) is None
    assert addresses.of_site({"address": {}}) is None


def test_a_sites_address_is_whole_and_cut_to_the_columns():
    addresses = Addresses()
    addresses.of_site(
        {"address": {"line": ["x" * 60, "second"], "city": "Austin", "state": "TX", "postalCode": "78701-1234"}}
    )
    row = addresses.frame().to_dicts()[0]
    assert (row["address_1"], row["city"], row["state"], row["zip"]) == ("x" * 50, "Austin", "TX", "787011234")


@pytest.mark.parametrize("line", [{}, [], False, 0])
def test_a_first_line_of_a_wrong_shape_that_says_nothing_is_no_line(line):
    addresses = Addresses()
    addresses.of_site({"address": {"line": [line], "city": "Austin"}})
    assert addresses.frame()["address_1"].to_list() == [None]


def test_a_wrong_shape_is_told():
    with pytest.raises(AttributeError):
        Addresses().of_patient({"address": ["1 Example Street"]})


@pytest.mark.parametrize(
    ("country", "expected"),
    [("US", "US"), ("usa", "USA"), ("United States", None), ("1 Example Street", None), (None, None)],
)
def test_a_patients_country_is_a_code_or_nothing(country, expected):
    """FHIR takes any text there."""
    assert patient_row(country=country, state="TX")["country_source_value"] == expected
