"""A warehouse with the demonstration vocabulary, and helpers that load small folders through the real pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.clock import ManualClock
from pipeline.omop.vocabulary import compile_index, load_vocabulary
from pipeline.runtime import Runtime
from pipeline.settings import MAPPINGS_FOLDER, Settings
from pipeline.warehouse.schema import install_schemas
from tests.integration.support import START, Warehouse


@pytest.fixture
def warehouse(database_url: str, tmp_path: Path) -> Warehouse:
    """An installed, empty warehouse with the demonstration vocabulary, on a clock that only tests move."""
    return _installed(database_url, tmp_path)


@pytest.fixture(scope="module")
def module_warehouse(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """The same for all tests of a module, which empty it themselves."""
    return _installed(module_database_url, tmp_path_factory.mktemp("warehouse"))


def _installed(url: str, folder: Path) -> Warehouse:
    settings = Settings(home=folder / "home", database_url=url, workers=1)
    runtime = Runtime(settings, ManualClock(START))
    install_schemas(url, cdm="cdm", vocab="vocab", etl="etl")
    release = load_vocabulary(url, MAPPINGS_FOLDER / "demo_vocabulary", vocab_schema="vocab", etl_schema="etl")
    compile_index(url, release, vocab_schema="vocab", home=settings.home)
    return Warehouse(runtime, folder)
