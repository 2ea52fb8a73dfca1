"""No row depends on its neighbours: the lines of all golden cases, in other orders and other chunks, give the same rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson
import pytest

from omop_schema.cdm import TABLES
from pipeline.staging.schemas import MAPPING, SCHEMAS, staged_columns
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.warehouse.vocabulary import ensure_index, load_vocabulary
from tests.golden.test_golden import CASES, as_json
from tests.transforming import Lines, Rows, Transforming, lines_of


@pytest.fixture(scope="module")
def index(installed_url: str, golden_vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> ConceptIndex:
    load_vocabulary(installed_url, golden_vocabulary, vocab_schema="vocab", etl_schema="etl")
    home = tmp_path_factory.mktemp("index")
    return ensure_index(installed_url, vocab_schema="vocab", etl_schema="etl", home=home)


def whole(lines: Lines) -> Iterator[Lines]:
    yield lines


def reversed_lines(lines: Lines) -> Iterator[Lines]:
    yield lines[range(len(lines))[::-1]]


def at_random(lines: Lines) -> Iterator[Lines]:
    places = [*range(len(lines))]
    random.Random(20250131).shuffle(places)
    while places:
        yield lines[places[:50]]
        del places[:50]


#: A chunk costs some hundredths of a second however few its lines: of each topic some cases are read line by line.
_ALONE = 25


def one_by_one(lines: Lines) -> Iterator[Lines]:
    wanted = {
        case.prefix
        for number, case in enumerate(CASES)
        if number % _ALONE == 0 or (case.resource == lines.resource_type and case.topic == "medication")
    }
    for place, raw in enumerate(lines.raws):
        resource_id = orjson.loads(raw).get("id")
        if isinstance(resource_id, str) and resource_id.rpartition(".")[0] + "." in wanted:
            yield lines[[place]]


SITES = [
    {},
    {
        "mapping": {"notes": "on", "panel_row": "always", "questionnaire_codes": "link_id", "data_absent": "exclude"},
        "text_source_value_types": ["Condition", "MedicationRequest", "Observation"],
        "time_zone": "America/Chicago",
    },
]


@pytest.mark.parametrize("site", [SITES[0], pytest.param(SITES[1], marks=pytest.mark.deep)], ids=["default", "options"])
def test_no_row_depends_on_its_neighbours(index: ConceptIndex, tmp_path: Path, site: dict[str, object]) -> None:
    raws = [as_json(resource) for case in CASES for key in ("fhir", "then") for resource in case.resources(key)]
    lines = lines_of(raws, tmp_path / "lines.ndjson")
    transforming = Transforming(index, tmp_path, tmp_path / "lines.ndjson", **site)
    transforming.gather_facts(lines)

    def rows(cut: Callable[[Lines], Iterator[Lines]]) -> Rows:
        return transforming.run(chunk for each in lines for chunk in cut(each))

    together = rows(whole)
    assert len(together["outcome"]) == len(raws)
    for cut in (reversed_lines, at_random):
        found = rows(cut)
        assert found[MAPPING] == together[MAPPING]
        assert_same(together, found, cut.__name__)
    alone = rows(one_by_one)
    lines_alone = {row[:2] for row in alone["outcome"]}
    assert len(lines_alone) > 100
    line_of = {kind: _line_place(kind) for kind in together}
    of_them = {
        kind: [row for row in together[kind] if kind in alone and place(row) in lines_alone]
        for kind, place in line_of.items()
        if place is not None
    }
    assert_same({kind: rows for kind, rows in of_them.items() if rows}, alone, "one by one")


def _line_place(kind: str) -> Callable[[tuple], tuple[int, int]] | None:
    """Where a row of a kind has file number and line; None for those that have none."""
    columns = list(SCHEMAS[kind] if kind in SCHEMAS else staged_columns(kind) if kind in TABLES else ())
    if "line" not in columns:
        return None
    number, line = columns.index("file_number"), columns.index("line")
    return lambda row: (row[number], row[line])


def assert_same(expected: Rows, found: Rows, how: str) -> None:
    for kind in expected:
        assert kind in found, f"{kind} {how}"
        missing, more = (_first(these, set(others)) for these, others in _both_ways(expected[kind], found[kind]))
        assert (missing, more) == ([], []), f"{kind} {how}"


def _both_ways(one: list[tuple], other: list[tuple]) -> Iterator[tuple[list[tuple], list[tuple]]]:
    yield one, other
    yield other, one


def _first(rows: Iterable[tuple], others: set[tuple]) -> list[tuple]:
    return [row for row in rows if row not in others][:3]
