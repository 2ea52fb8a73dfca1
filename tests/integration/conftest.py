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
    settings = Settings(home=tmp_path / "home", database_url=database_url, workers=1)
    runtime = Runtime(settings, ManualClock(START))
    install_schemas(database_url, cdm="cdm", vocab="vocab", etl="etl")
    release = load_vocabulary(database_url, MAPPINGS_FOLDER / "demo_vocabulary", vocab_schema="vocab", etl_schema="etl")
    compile_index(database_url, release, vocab_schema="vocab", home=settings.home)
    return Warehouse(runtime, tmp_path)
