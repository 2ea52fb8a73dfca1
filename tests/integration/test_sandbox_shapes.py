"""What is loaded from the simulated Epic: for each shape of Epic on which a mapping has failed, the right row or reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from pipeline.sandbox.generator import generate
from tests.databases import Prepared
from tests.integration.conftest import warehouse_of
from tests.integration.support import START, Warehouse
from tests.sandbox_shapes import SHAPES, WORLD, Shape

Loaded = tuple[Warehouse, list[dict[str, Any]]]
_PERSONS = {"person", "death"}


@pytest.fixture(scope="module")
def loaded(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """One small world, loaded once; and its readable resources."""
    files: dict[str, list[bytes]] = defaultdict(list)
    resources = []
    for resource_type, line in generate(WORLD, 1, START.date()):
        files[resource_type].append(line)
        try:
            resources.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    with warehouse_of(demo_warehouse, tmp_path_factory.mktemp("shapes")) as warehouse:
        warehouse.load(files)
        yield warehouse, resources


@pytest.mark.parametrize("name", SHAPES)
def test_shape_has_its_row(loaded: Loaded, name: str) -> None:
    warehouse, resources = loaded
    shape = SHAPES[name]
    ids = [resource["id"] for resource in shape.among(resources)]
    assert ids, "is played"
    found = set(_found(warehouse, shape, ids))
    assert found == set(ids) if shape.each else found


def _found(warehouse: Warehouse, shape: Shape, ids: list[str]) -> list[str]:
    """Ids of those resources of which the shape's row, reason or issue has come."""
    given = (shape.resource, ids)
    if shape.row:
        key = "person_id" if shape.table in _PERSONS else f"{shape.table}_id"
        query = (
            f"SELECT resource_id FROM cdm.{shape.table} r"
            f" JOIN etl.row_source s ON s.cdm_table = '{shape.table}' AND s.row_id = r.{key}"
            f" WHERE s.resource_type = %s AND s.resource_id = ANY(%s) AND {shape.row.replace('%', '%%')}"
        )
        return _ids(warehouse, query, *given)
    states = "FROM etl.resource_state t JOIN etl.site_resource_type USING (site_resource_type_id)"
    chosen = "WHERE resource_type = %s AND resource_id = ANY(%s)"
    if shape.excluded:
        return _ids(warehouse, f"SELECT resource_id {states} {chosen} AND reason = %s", *given, shape.excluded)
    query = f"SELECT resource_id {states} JOIN etl.row_issue i USING (surrogate_id) {chosen} AND i.code = %s"
    return _ids(warehouse, query, *given, shape.issue)


def _ids(warehouse: Warehouse, query: str, *parameters: Any) -> list[str]:
    return [row[0] for row in warehouse.rows(query, *parameters)]


def test_no_home_is_anywhere(loaded: Loaded) -> None:
    """Neither the name of a patient's home nor its street (A.2)."""
    warehouse, _ = loaded
    for table in ("care_site", "location"):
        assert warehouse.rows(f"SELECT t FROM cdm.{table} t WHERE t::text ~ 'Home of|Imaginary Street'") == []
