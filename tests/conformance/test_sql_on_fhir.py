"""SQL on FHIR v2: the project's own cases, and the official ones where their folder is at hand.

Both have the official format: a file holds resources and tests, a test a view and the rows or the error that it
must give. The official folder is `$EPIC_OMOP_SQL_ON_FHIR_TESTS`, else `shared/standards/sql-on-fhir-v2-tests`
beside the project. Rows are compared without order, because the specification gives rows none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import MappingError
from pipeline.sql_on_fhir.view_definition import (
    EvaluationError,
    compile_columns,
    compile_view,
    is_known_type,
    view_columns,
)

OWN = Path(__file__).parent / "sql_on_fhir"
PROJECT = Path(__file__).parents[2]
OFFICIAL = Path(
    os.environ.get("EPIC_OMOP_SQL_ON_FHIR_TESTS") or PROJECT.parent / "shared/standards/sql-on-fhir-v2-tests"
)

Case = dict[str, Any]


def read_cases(folder: Path) -> Iterator[Any]:
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        for case in content.get("tests", []):
            yield pytest.param(content["resources"], case, id=f"{file.stem}: {case['title']}")


OWN_CASES = list(read_cases(OWN))
OFFICIAL_CASES = list(read_cases(OFFICIAL))


def in_any_order(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def check(resources: list[dict[str, Any]], case: Case) -> None:
    if case.get("expectError"):
        with pytest.raises((MappingError, EvaluationError)):
            run_view(resources, case["view"])
        return
    rows = run_view(resources, case["view"])
    if "expectCount" in case:
        assert len(rows) == case["expectCount"]
    else:
        assert in_any_order(rows) == in_any_order(case["expect"])
    if "expectColumns" in case:
        assert [column.name for column in view_columns(case["view"])] == case["expectColumns"]
        assert all(list(row) == case["expectColumns"] for row in rows)


def run_view(resources: list[dict[str, Any]], view: dict[str, Any]) -> list[dict[str, Any]]:
    function = compile_view(view)
    return [row for resource in resources for row in function(resource)]


@pytest.mark.parametrize(("resources", "case"), OWN_CASES)
def test_own_case(resources: list[dict[str, Any]], case: Case) -> None:
    check(resources, case)


@pytest.mark.skipif(not OFFICIAL_CASES, reason="the official tests are not on this machine")
@pytest.mark.parametrize(("resources", "case"), OFFICIAL_CASES)
def test_official_case(resources: list[dict[str, Any]], case: Case) -> None:
    check(resources, case)


@pytest.mark.parametrize(
    ("resources", "case"), [case for case in OWN_CASES + OFFICIAL_CASES if "expect" in case.values[1]]
)
def test_the_columns_form_gives_the_same_rows(resources: list[dict[str, Any]], case: Case) -> None:
    """The pipeline's form agrees with the specification's on every case; types are right in all of them."""
    names = [column.name for column in view_columns(case["view"])]
    assert all(is_known_type(column.type) for column in view_columns(case["view"]) if column.type)
    compiled = compile_columns(case["view"], {})
    buffers = compiled.new_buffers()
    count = sum(compiled.append(resource, buffers) for resource in resources)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*buffers, strict=True)]
    assert in_any_order(rows) == in_any_order(case["expect"])
    assert count == len(rows)
    assert [compiled.explain(resource) for resource in resources] == [None] * len(resources)


def test_every_official_shareable_case_is_collected() -> None:
    if not OFFICIAL_CASES and "EPIC_OMOP_SQL_ON_FHIR_TESTS" not in os.environ:
        pytest.skip("the official tests are not on this machine")
    shareable = [case for case in OFFICIAL_CASES if "shareable" in case.values[1].get("tags", ())]
    assert len(shareable) >= 123
