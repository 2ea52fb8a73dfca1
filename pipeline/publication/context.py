"""What the steps of a publication share, and what they tell each other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import polars as pl
import psycopg
from sqlalchemy import Connection

from pipeline.landing.store import LandedExport
from pipeline.publication.chains import CHAIN_SCHEMA
from pipeline.publication.ids import EntityIds
from pipeline.publication.known_cache import KnownCache
from pipeline.staging.parts import StagedExport
from pipeline.warehouse.copying import EncodedRows, column_types, copy_encoded
from pipeline.warehouse.export_jobs import lock_warehouse
from pipeline.warehouse.runtime import Runtime

__all__ = ["LANDED_LINE", "LINE", "LandedLine", "Publication", "PublicationReport"]

#: What tells the lines of an export apart.
LINE = ["surrogate_id", "file_number", "line"]


class LandedLine(NamedTuple):
    """The landed line of a resource: where it lies, and by what it is known elsewhere. SQL: `LANDED_LINE`."""

    export_id: int
    file_number: int
    byte_offset: int
    byte_length: int
    surrogate_id: int
    resource_type: str
    raw_hash_high: int
    raw_hash_low: int
    #: transactionTime of the export that brought it
    as_of: datetime

    @property
    def hashes(self) -> tuple[int, int]:
        return self.raw_hash_high, self.raw_hash_low


#: The columns of a `LandedLine`, where resource_state is `state` and site_resource_type `kind`.
LANDED_LINE = (
    "state.export_id, state.file_number, state.byte_offset, state.byte_length, state.surrogate_id, kind.resource_type,"
    " state.raw_hash_high, state.raw_hash_low, state.as_of"
)


@dataclass
class PublicationReport:
    """What came of an export. Counts are of lines by outcome, and of rows by CDM table."""

    export_id: int
    site: str
    vocabulary_release: str
    outcomes: Counter[str] = field(default_factory=Counter)
    #: of the unchanged ones: other bytes, the same content
    unchanged_by_content: int = 0
    rows_inserted: Counter[str] = field(default_factory=Counter)
    rows_deleted: Counter[str] = field(default_factory=Counter)
    #: by the derived tables: ends that moved with the as-of date, preceding visits
    rows_updated: Counter[str] = field(default_factory=Counter)
    #: resource type → (rows with a standard concept, rows with a code)
    mapping_rates: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: what the transform stage waited for its processes to start, and all of it
    start_seconds: float = 0.0
    transform_seconds: float = 0.0
    publish_seconds: float = 0.0
    #: of which for the derived tables
    derived_seconds: float = 0.0
    #: step of transform or publication → seconds
    steps: dict[str, float] = field(default_factory=dict)
    #: lines of unchanged resources that depend on what changed
    dependents: list[LandedLine] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    #: loaded resources that are absent from their groups' exports: what came of it (vanished and left_group: removed;
    #: kept, waiting, undecided) → resource type → count
    vanished: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def lines(self) -> int:
        return sum(self.outcomes.values())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to `steps`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.steps[name] = self.steps.get(name, 0.0) + time.perf_counter() - started

    @property
    def changed_rows(self) -> int:
        changes = (self.rows_inserted, self.rows_deleted, self.rows_updated)
        return sum(sum(counts.values()) for counts in changes)


class Publication:
    """One publication's connection, input and decisions. Steps are functions of it."""

    def __init__(
        self,
        runtime: Runtime,
        connection: Connection,
        export: LandedExport,
        staged: StagedExport,
        report: PublicationReport,
        fingerprints: Mapping[str, int],
        known: KnownCache,
        *,
        confirmed: bool = False,
    ) -> None:
        settings = runtime.settings
        self.settings = settings
        self.site = settings.site_or_folder(export.site)
        self.sqlalchemy = connection
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        self.connection = driver
        self.cdm, self.vocab, self.etl = settings.cdm_schema, settings.vocab_schema, settings.etl_schema
        self.connection.execute(f"SET LOCAL search_path TO {self.etl}, {self.cdm}, {self.vocab}")
        lock_warehouse(self.connection)
        self.export = export
        self.staged = staged
        self.report = report
        self.fingerprints = fingerprints
        #: told of every state that changes
        self.known = known
        #: whether a person has said that vanished resources may be deleted, however many
        self.confirmed = confirmed
        #: whether a person has said that this export's lines count although newer exports have come
        self.over_newer = False
        self.now = runtime.clock.now()
        self.ids = EntityIds(self.connection, self.cdm)
        #: rows for etl.reference that publication itself found: links that wait for their target
        self.pending: list[pl.DataFrame] = []
        #: entity table → surrogate ids of rows that were not there before
        self.new_rows: dict[str, pl.Series] = {}
        #: entity table → surrogate_id, row_id: rows that references lead to by what stands for their resource
        self.stand_ins: dict[str, pl.DataFrame] = {}
        #: of a first load, what `stand_ins` asks for again and again
        self.first_facts: pl.DataFrame | None = None
        #: table → surrogate_id, row_key, row_id of removed rows, whose ids are used again
        self.old_rows: dict[str, pl.DataFrame] = {}
        #: whether nothing was ever loaded: no resource has a former version, and nothing waits for one
        self.is_first = not self.count("SELECT count(*) FROM (SELECT FROM resource_state LIMIT 1) AS any_state")
        #: whether the warehouse is filled without indices, and those of the CDM include keys to the vocabulary: `bulk`
        self.is_bulk = self.has_vocabulary_constraints = False
        #: tables, with their schema, that this transaction emptied
        self.emptied: frozenset[str] = frozenset()
        self._types: dict[str, dict[str, str]] = {}
        # What `decide` says:
        no_lines = pl.DataFrame(schema={"surrogate_id": pl.Int64, "file_number": pl.Int32, "line": pl.Int64})
        #: lines that are older than what is known, or repeated
        self.superseded = no_lines
        #: lines that publication rejects: LINE, code, person (surrogate id of the one that is missing, or NULL)
        self.refused = no_lines.with_columns(
            pl.lit(None, dtype=pl.String).alias("code"), pl.lit(None, dtype=pl.Int64).alias("person")
        )
        #: what `vanished` says: resources whose rows go (surrogate_id, reason); of this export's, those that a newer
        #: export no longer holds; and all of this export's that a group had been without
        self.vanished = pl.DataFrame(schema={"surrogate_id": pl.Int64, "reason": pl.String})
        self.outlived = no_lines.select("surrogate_id")
        self.came_back = no_lines.select("surrogate_id")
        #: superseded and refused lines
        self.not_loaded = no_lines
        #: surrogate_id of resources of which no line is loaded (of a repeated one, a line is)
        self.dropped = no_lines.select("surrogate_id")
        #: persons whose events follow another one, and sub-encounters of visits: from, next, last (surrogate ids)
        self.merged = pl.DataFrame(schema=CHAIN_SCHEMA)
        self.children = pl.DataFrame(schema=CHAIN_SCHEMA)
        #: sub-encounters in visit_detail that staged rows refer to: surrogate_id, detail_row_id, visit_row_id
        self.details = pl.DataFrame(schema=dict.fromkeys(("surrogate_id", "detail_row_id", "visit_row_id"), pl.Int64))

    def count(self, query: str) -> int:
        """The first column of a query's one row."""
        row = self.connection.execute(query).fetchone()
        return int(row[0]) if row else 0

    def types(self, table: str) -> dict[str, str]:
        """Column → PostgreSQL type of a table, named with its schema."""
        if table not in self._types:
            self._types[table] = column_types(self.connection, table)
        return self._types[table]

    def copy(self, table: str, rows: EncodedRows) -> int:
        """COPY into a table, named with its schema. Returns the number of rows."""
        return copy_encoded(self.connection, table, rows, freeze=table in self.emptied)

    def taken(self, table: str) -> pl.DataFrame:
        """All staged rows of an entity table whose lines are loaded, in the order of the input.

        Merged persons have no row of their own, and sub-encounters of visits none in visit_occurrence.
        """
        parts = self.staged.parts(table)
        if not parts:
            return pl.DataFrame(schema=dict.fromkeys(("surrogate_id", "row_key"), pl.Int64))
        rows = pl.concat([self.loaded(pl.read_parquet(part)) for part in parts])
        elsewhere = {"person": self.merged, "visit_occurrence": self.children}.get(table)
        if elsewhere is None or elsewhere.is_empty():
            return rows
        return rows.join(elsewhere, left_on="surrogate_id", right_on="from", how="anti", maintain_order="left")

    def loaded(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Those of a frame's rows (with LINE) whose lines are loaded."""
        if self.not_loaded.is_empty():
            return frame
        return frame.join(self.not_loaded, on=LINE, how="anti", maintain_order="left")
