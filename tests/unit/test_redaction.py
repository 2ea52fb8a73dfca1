"""What of a server's words and addresses may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.extract.http.redaction import known_words, progress_words, shown_url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "Error normalizing bulk request: this client has requested this Group too recently.",
            "Error normalizing bulk request: this client has requested this Group too recently.",
        ),
        ("A required element is missing.", "A required element is missing."),
        ("The parameter _type names MedicationRequest.", "The parameter _type … MedicationRequest."),
        ("Patient Anna Miller (born 1970-05-06, MRN 123456) was not found.", "Patient … was not found."),
        ("No match for 'O’Neil'", "No match for …"),
        ("Invalid value: (555) 010-2030 for telecom", "Invalid value: … for …"),
        ("line\nbreak\x1b[31m", "line …"),
        (None, ""),
        (17, ""),
    ],
)
def test_only_known_words_are_shown(text: object, shown: str) -> None:
    assert known_words(text) == shown


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Nd", "Zs", "Po", "Pd"]), max_size=300))
def test_no_digit_and_no_unknown_word_comes_through(text: str) -> None:
    assert not any(character.isdigit() for character in known_words(text).replace("R4", "").replace("r4", ""))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("in progress, asked 2 times", "in progress, asked 2 times"),
        ("45%", "45%"),
        ("3/17 files", "3/17 files"),
        ("exporting Anna Miller 123456789", "exporting …"),
    ],
)
def test_progress_may_have_numbers(text: str, shown: str) -> None:
    assert progress_words(text) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@h:8/a/b?patient=1&_type=x#f", "https://h:8/a/b?patient=…&_type=…"),
        ("https://h/fhir/Patient/eX1.2", "https://h/fhir/Patient/…"),
        ("https://h/fhir/Patient/eX1/_history/2", "https://h/fhir/Patient/…/_history/2"),
        ("https://h/fhir/Patient?identifier=123", "https://h/fhir/Patient?identifier=…"),
        ("https://h/fhir/Patient/$match", "https://h/fhir/Patient/$match"),
        ("https://h/fhir/Patient/_search", "https://h/fhir/Patient/_search"),
        ("https://h/fhir/Group/eG/$export?_type=Patient", "https://h/fhir/Group/eG/$export?_type=…"),
        ("https://h/BulkRequest/17/Patient", "https://h/BulkRequest/17/Patient"),
    ],
)
def test_addresses_are_shown_without_values_and_ids(url: str, shown: str) -> None:
    assert shown_url(url) == shown
