"""What every stage needs from its surroundings: settings, the clock, and connections to the warehouse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import psycopg

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.settings import Settings, load_settings
from pipeline.landing.store import LandingStore
from pipeline.warehouse.cdm_version import refuse_other_version
from pipeline.warehouse.connection import connect, database_url

__all__ = ["LoadSizes", "Runtime"]


@dataclass(frozen=True)
class LoadSizes:
    """How a load is cut into pieces, in bytes. No row depends on it: `verify --deep` loads with other sizes."""

    #: What a worker is given at a time; None: what suits most (`pipeline.landing.chunks.CHUNK_BYTES`).
    chunk: int | None = None
    #: Below this size a process pool costs more than it gives: the load is done in the process itself.
    in_process: int = 8 * 1024 * 1024


@dataclass(frozen=True)
class Runtime:
    settings: Settings
    clock: Clock = field(default_factory=SystemClock)
    sizes: LoadSizes = LoadSizes()

    @classmethod
    def from_environment(cls) -> Runtime:
        return cls(load_settings())

    @cached_property
    def url(self) -> str:
        """libpq URL of the warehouse; starts the embedded server where no URL is set."""
        return database_url(self.settings.database_url, self.settings.home)

    @property
    def landing(self) -> LandingStore:
        return LandingStore(self.settings.landing)

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """A connection whose search_path is etl, cdm, vocab: statements name tables without a schema.

        Commits at the end of the block, rolls back on an exception, as psycopg does. Raises ConfigurationError where the
        database is of another version of the CDM than the settings.
        """
        settings = self.settings
        with connect(self.url) as connection:
            refuse_other_version(connection, settings.cdm_schema, settings.cdm_version)
            path = f"{settings.etl_schema}, {settings.cdm_schema}, {settings.vocab_schema}"
            connection.execute(f"SET search_path TO {path}")
            connection.commit()
            yield connection
