"""A warehouse with the demonstration vocabulary, and helpers that load small folders through the real pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.clock import ManualClock
from pipeline.runtime import Runtime
from pipeline.settings import Settings
from tests.databases import Prepared
from tests.integration.support import START, Warehouse


@pytest.fixture
def warehouse(demo_warehouse: Prepared, tmp_path: Path) -> Iterator[Warehouse]:
    """An installed, empty warehouse with the demonstration vocabulary, on a clock that only tests move."""
    with demo_warehouse.copy(tmp_path / "home") as url:
        settings = Settings(home=tmp_path / "home", database_url=url, workers=1)
        yield Warehouse(Runtime(settings, ManualClock(START)), tmp_path)
