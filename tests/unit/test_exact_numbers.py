"""Decimals of any length reach the COPY with the digits that the source wrote: through the whole transform stage."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import MAPPINGS_FOLDER, SiteSettings
from pipeline.fhir.ndjson import texts_of
from pipeline.landing.chunks import plan_chunks
from pipeline.load.fingerprints import site_mapping
from pipeline.load.tasks import ChunkPiece, ChunkTask, WorkerPlan
from pipeline.load.worker import LineWorker
from pipeline.sql_on_fhir import exact_numbers
from pipeline.staging.parts import StagedExport
from pipeline.transform.concepts.index import (
    ANCESTOR_FILE,
    ANCESTOR_SCHEMA,
    CONCEPT_FILE,
    CONCEPT_SCHEMA,
    INDEX_FILE,
    INDEX_SCHEMA,
    ConceptIndex,
)
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.plan import TransformPlan


def literals(least, most):
    """JSON numbers of `least` to `most` significant digits, plain or with an exponent."""
    coefficients = st.integers(10 ** (least - 1), 10**most - 1)
    numbers = st.builds(
        lambda coefficient, exponent, sign: Decimal(coefficient * sign).scaleb(exponent),
        coefficients,
        st.integers(-25, 3),
        st.sampled_from([1, -1]),
    )
    return st.builds(format, numbers, st.sampled_from(["f", "e"]))


@pytest.fixture(scope="module")
def transformed(tmp_path_factory):
    """A function: decimal literals → the values of their measurement rows as the COPY gets them."""
    folder = tmp_path_factory.mktemp("exact")
    pl.DataFrame(schema=dict(INDEX_SCHEMA)).write_parquet(folder / INDEX_FILE)
    pl.DataFrame(schema=dict(CONCEPT_SCHEMA)).write_parquet(folder / CONCEPT_FILE)
    pl.DataFrame(schema=dict(ANCESTOR_SCHEMA)).write_parquet(folder / ANCESTOR_FILE)
    staged = StagedExport(folder / "staged")
    worker = LineWorker(
        WorkerPlan(
            TransformPlan(
                site=site_mapping(SiteSettings(name="site")),
                instance_zone="UTC",
                surrogate_salt="",
                identifier_secret=b"",
                as_of=date(2025, 1, 31),
                mappings=load_mappings(MAPPINGS_FOLDER, options=MappingOptions(negative_values="off")),
                index=ConceptIndex(folder, "test release", "hash"),
                fixed={},
            ),
            folder / "known",
            folder / "facts",
            staged,
            folder,
        )
    )

    def run(numbers):
        staged.clear()
        file = folder / "Observation.ndjson"
        file.write_bytes(b"".join(observation(index, text) for index, text in enumerate(numbers)))
        (chunk,) = plan_chunks(file)
        worker.compare(ChunkTask((ChunkPiece(file, 1, chunk),), "Observation"))
        (frame,) = staged.frames("measurement")
        assert frame.height == len(numbers)
        return frame.select("value_as_number").write_csv(include_header=False).split()

    return run


def observation(index, text):
    resource = {
        "resourceType": "Observation",
        "id": f"o{index}",
        "status": "final",
        "category": [{"coding": [{"code": "laboratory"}]}],
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": "2024-03-10",
        "valueQuantity": {"value": orjson.Fragment(text)},
    }
    return orjson.dumps(resource) + b"\n"


@settings(deadline=None, max_examples=20)
@given(st.lists(literals(1, 15), min_size=1, max_size=40))
def test_fifteen_digits_come_back(transformed, numbers):
    assert [Decimal(value) for value in transformed(numbers)] == [Decimal(text) for text in numbers]


@settings(deadline=None, max_examples=20)
@given(st.lists(literals(1, 40), min_size=1, max_size=40))
def test_any_number_of_digits_comes_back(transformed, numbers):
    assert [Decimal(value) for value in transformed(numbers)] == [Decimal(text) for text in numbers]


@pytest.mark.parametrize(
    "text",
    [
        "0.1000000000000000055511151231257827",  # what a double of 0.1 is: its shortest text is 0.1
        "98.600000000000001",
        "9007199254740993",
        "-1.00000000000000000",
    ],
)
def test_a_number_whose_double_has_a_short_text_is_found(transformed, text):
    assert Decimal(transformed(["1.5", text, "2"])[1]) == Decimal(text)


def found(*raws):
    return exact_numbers.lines_with_long_numbers(texts_of(raws))


def test_lines_without_long_numbers_are_read_once():
    assert found(observation(1, "13.2"), observation(2, "120"), b"not JSON \xff") == set()
    spaced = b'{"value" : -0.12345678901234567890}'
    assert found(observation(1, "13.2"), spaced) == {1}


@pytest.mark.parametrize(
    "text", ["82.59838370183087", "0.30000000000000004", "1.000000000000000000", "100000000000000000"]
)
def test_what_a_double_holds_is_no_exact_number(text):
    assert exact_numbers.exact_number(text) is None


def test_a_double_that_a_program_wrote_is_read_once():
    assert found(observation(1, "82.59838370183087"), observation(2, "0.1" + "0" * 18 + "1")) == {1}


def test_what_no_column_takes_stays_a_double():
    assert exact_numbers.exact_number("1234567890123456789e-20000") is None
    assert exact_numbers.exact_number("0." + "1" * 900) is None
    assert exact_numbers.loads(b'{"value": 12345678901234567890, "n": 3, "x": 0.5}') == {
        "value": 12345678901234567890.0,
        "n": 3,
        "x": 0.5,
    }


def test_a_line_nested_too_deeply_for_the_slow_parser_is_read_by_the_fast_one():
    raw = b'{"a":' * 1000 + b'{"value":0.12345678901234567}' + b"}" * 1000
    assert isinstance(exact_numbers.loads(raw), dict)
