"""A warehouse with the demonstration vocabulary, and helpers that load small folders through the real pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.core.clock import ManualClock
from pipeline.core.settings import Settings
from pipeline.warehouse.runtime import Runtime
from tests.databases import Prepared
from tests.integration.support import START, Warehouse


@pytest.fixture
def warehouse(demo_warehouse: Prepared, tmp_path: Path) -> Iterator[Warehouse]:
    """An installed, empty warehouse with the demonstration vocabulary, on a clock that only tests move."""
    with warehouse_of(demo_warehouse, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def module_warehouse(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """The same for all tests of a module, which empty it themselves."""
    with warehouse_of(demo_warehouse, tmp_path_factory.mktemp("warehouse")) as found:
        yield found


@contextmanager
def warehouse_of(prepared: Prepared, folder: Path) -> Iterator[Warehouse]:
    with prepared.copy(folder / "home") as url:
        settings = Settings(home=folder / "home", database_url=url, workers=1)
        yield Warehouse(Runtime(settings, ManualClock(START)), folder)
