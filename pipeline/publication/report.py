"""What a publication reports. What its steps take and leave: `values`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.publication.landed_line import LandedLine
from pipeline.publication.values import RowCounts

__all__ = ["PublicationReport"]


@dataclass
class PublicationReport:
    """The result of a publication. Counts are of lines by outcome, and of rows by CDM table."""

    export_id: int
    site: str
    vocabulary_release: str
    #: content hash of that release
    vocabulary_hash: str
    outcomes: Counter[str] = field(default_factory=Counter)
    #: of the unchanged ones: other bytes, the same content
    unchanged_by_content: int = 0
    rows_inserted: Counter[str] = field(default_factory=Counter)
    rows_deleted: Counter[str] = field(default_factory=Counter)
    #: by the derived tables: ends that moved with the as-of date, preceding visits
    rows_updated: Counter[str] = field(default_factory=Counter)
    #: resource type → (rows with a standard concept, rows with a code)
    mapping_rates: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: what rules about numbers found: see `steps.accounts.value_checks`
    value_checks: list[dict[str, Any]] = field(default_factory=list)
    #: facts that two resources bring: see `steps.duplicates.count_duplicates`
    duplicates: list[dict[str, Any]] = field(default_factory=list)
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
    #: loaded resources that are absent from their groups' exports: disposition (vanished and left_group: removed;
    #: kept, waiting, undecided) → resource type → count
    vanished: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def lines(self) -> int:
        return sum(self.outcomes.values())

    def add(self, counts: RowCounts) -> None:
        """Count the rows that a step wrote."""
        self.rows_inserted.update(counts.inserted)
        self.rows_deleted.update(counts.deleted)
        self.rows_updated.update(counts.updated)

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
