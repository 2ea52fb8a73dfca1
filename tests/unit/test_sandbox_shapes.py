"""Every shape of Epic on which a mapping has failed is played, by every seed, already in a small world."""

from __future__ import annotations

import datetime as dt
from typing import Any

import orjson
import pytest

from pipeline.sandbox.generator import RESOURCE_TYPES, generate
from pipeline.sandbox.seldom.rotation import EVERY_WAY
from pipeline.sandbox.sources import EXPORTED_TYPES
from tests.sandbox_shapes import SHAPES, WORLD

FIRST_DAY = dt.date(2026, 3, 1)


def _resources(patients: int, seed: int) -> list[dict[str, Any]]:
    found = []
    for _, line in generate(patients, seed, FIRST_DAY):
        try:
            found.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_shape_is_played(seed: int) -> None:
    resources = _resources(WORLD, seed)
    assert [name for name, shape in SHAPES.items() if not any(shape.among(resources))] == []


def test_what_seldom_comes_is_there_early() -> None:
    """Shapes that few patients have are in turn, not by chance: the first persons have them all."""
    assert EVERY_WAY <= 13
    common = {"A.3", "A.4 three", "A.1", "A.8 a r", "A.12 an order"}  # by chance: of one resource in so many
    seldom = {name: shape for name, shape in SHAPES.items() if not name.startswith(tuple(common))}
    resources = _resources(EVERY_WAY, 5)
    assert [name for name, shape in seldom.items() if not any(shape.among(resources))] == []


def test_all_types_are_such_as_epic_exports() -> None:
    assert set(RESOURCE_TYPES) <= EXPORTED_TYPES


def test_a_large_world_has_few_of_them() -> None:
    """What seldom comes makes a world of 200 patients no twentieth larger."""
    lines = [
        orjson.loads(line) for _, line in generate(200, 1, FIRST_DAY, types=["AdverseEvent", "MedicationStatement"])
    ]
    assert len(lines) <= 20
