"""The transform stage alone, in this process: lines in, the rows of staging out. No server but for the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from pipeline.core.settings import MAPPINGS_FOLDER, SiteSettings
from pipeline.load.fingerprints import site_mapping
from pipeline.load.plan import FACT_ORDER, PLACE_ORDER
from pipeline.load.tasks import WorkerPlan
from pipeline.load.worker import LineWorker
from pipeline.staging import schemas
from pipeline.staging.facts import write_facts
from pipeline.staging.parts import StagedExport
from pipeline.transform.concepts.index import (
    ANCESTOR_FILE,
    ANCESTOR_SCHEMA,
    CONCEPT_FILE,
    CONCEPT_SCHEMA,
    INDEX_FILE,
    INDEX_SCHEMA,
    STRENGTH_FILE,
    STRENGTH_SCHEMA,
    ConceptIndex,
)
from pipeline.transform.content import Contents
from pipeline.transform.lines import LineBatch, LinesTransform
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.plan import TransformPlan

__all__ = ["Lines", "Rows", "Transforming", "index_of", "lines_of", "plan_of", "write_no_facts"]

#: kind of staging → its rows
Rows = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class _Kept(StagedExport):
    """Staging that keeps what is written."""

    written: dict[str, list[pl.DataFrame]] = field(default_factory=dict)

    def write(self, kind: str, part: str, frame: pl.DataFrame) -> None:
        if not frame.is_empty():
            self.written.setdefault(kind, []).append(frame)


@dataclass(frozen=True)
class Lines:
    """Lines of one resource type with their places in a file, which do not depend on how they are cut into chunks."""

    resource_type: str
    raws: tuple[bytes, ...]
    numbers: tuple[int, ...]
    offsets: tuple[int, ...]

    def __getitem__(self, places: Sequence[int]) -> Lines:
        parts = ([values[place] for place in places] for values in (self.raws, self.numbers, self.offsets))
        return Lines(self.resource_type, *map(tuple, parts))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.raws)


def lines_of(raws: Iterable[bytes], file: Path) -> list[Lines]:
    """The lines, which are written to `file`, by their resource types."""
    found: dict[str, list[tuple[bytes, int, int]]] = {}
    offset = 0
    content = []
    for number, raw in enumerate(raws, start=1):
        found.setdefault(orjson.loads(raw)["resourceType"], []).append((raw, number, offset))
        content.append(raw + b"\n")
        offset += len(raw) + 1
    file.write_bytes(b"".join(content))
    return [Lines(name, *(tuple(part) for part in zip(*lines, strict=True))) for name, lines in sorted(found.items())]


def plan_of(index: ConceptIndex, facts: Path, staged: StagedExport, landing: Path, **site: Any) -> WorkerPlan:
    """What a worker of a site with these settings is given."""
    settings = SiteSettings(name="transforming", **site)
    mappings = load_mappings(MAPPINGS_FOLDER, settings.name, settings.mapping)
    fixed = {known: found.use_concept_id for known, found in index.verify_fixed(mappings.fixed_concepts).items()}
    transform = TransformPlan(
        site=site_mapping(settings),
        instance_zone="UTC",
        surrogate_salt="",
        identifier_secret=b"",
        as_of=date(2025, 1, 31),
        mappings=mappings,
        index=index,
        fixed=fixed,
    )
    return WorkerPlan(transform, known=None, facts=facts, staged=staged, landing=landing)


def index_of(folder: Path, codes: Iterable[tuple[str, str, int, str]] = ()) -> ConceptIndex:
    """A concept index of Standard concepts (vocabulary, code, id, domain), made without a server."""
    rows = [(vocabulary, code, number, domain, "S", None, 1, number, domain, vocabulary, None)
            for vocabulary, code, number, domain in codes]  # fmt: skip
    concepts = [
        (number, code, domain, vocabulary, "Undefined", "S", None, number) for vocabulary, code, number, domain in codes
    ]
    folder.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(rows, schema=dict(INDEX_SCHEMA), orient="row").sort("vocabulary_id", "concept_code")
    frame.write_parquet(folder / INDEX_FILE)
    pl.DataFrame(concepts, schema=dict(CONCEPT_SCHEMA), orient="row").write_parquet(folder / CONCEPT_FILE)
    pl.DataFrame(schema=dict(ANCESTOR_SCHEMA)).write_parquet(folder / ANCESTOR_FILE)
    pl.DataFrame(schema=dict(STRENGTH_SCHEMA)).write_parquet(folder / STRENGTH_FILE)
    return ConceptIndex(folder, "made by a test", "test")


def write_no_facts(folder: Path) -> None:
    write_facts(folder, pl.LazyFrame(schema={"surrogate_id": pl.Int64, "name": pl.String, "value": pl.String}))


class Transforming:
    """A worker of one site. `file` is where the lines are (a reference_value of a line names its place)."""

    def __init__(self, index: ConceptIndex, folder: Path, file: Path, **site: Any) -> None:
        self._staged = _Kept(folder / "staged")
        self._file = file
        self.plan = plan_of(index, folder / "facts", self._staged, file.parent, **site)
        self._mappings = self.plan.transform.mappings
        self.worker = LineWorker(self.plan).transform

    def run(self, chunks: Iterable[Lines]) -> Rows:
        """The rows of staging of these chunks, sorted. Facts are those of the last `gather_facts`."""
        self._staged.written.clear()
        for chunk in chunks:
            self.worker.bound_memory()
            self._transform(chunk)
        rows: Rows = {}
        for kind, frames in self._staged.written.items():
            frame = pl.concat(frames, how="diagonal")
            if kind == schemas.MAPPING:
                frame = frame.group_by("resource_type").agg(pl.col("mapped", "total").sum())
            rows[kind] = sorted(frame.rows(), key=repr)
        return rows

    def gather_facts(self, chunks: Sequence[Lines]) -> None:
        """What the resources leave for others, as the first stage of a load does."""
        nothing = pl.LazyFrame(schema={"surrogate_id": pl.Int64, "name": pl.String, "value": pl.String})
        write_facts(self.plan.facts, nothing)
        self._write_facts_of([chunk for chunk in chunks if self.order(chunk.resource_type) < PLACE_ORDER])
        self._write_facts_of([chunk for chunk in chunks if self.order(chunk.resource_type) < FACT_ORDER])

    def _write_facts_of(self, chunks: Sequence[Lines]) -> None:
        self.run(chunks)
        nothing = pl.LazyFrame(schema={"surrogate_id": pl.Int64, "name": pl.String, "value": pl.String})
        found = self._staged.written.get(schemas.REFERENCE_VALUE, [])
        facts = (
            pl.concat([frame.select("surrogate_id", "name", "value") for frame in found]).lazy() if found else nothing
        )
        write_facts(self.plan.facts, facts)
        self.worker = LineWorker(self.plan).transform

    def order(self, resource_type: str) -> int:
        mapping = self._mappings.resources.get(resource_type)
        return mapping.order if mapping else FACT_ORDER

    def _transform(self, chunk: Lines) -> None:
        count = len(chunk)
        lines = pl.DataFrame(
            {
                "index": pl.int_range(count, dtype=pl.Int32, eager=True),
                "file_number": pl.repeat(1, count, dtype=pl.Int32, eager=True),
                "line": pl.Series(chunk.numbers, dtype=pl.Int64),
                "byte_offset": pl.Series(chunk.offsets, dtype=pl.Int64),
                "byte_length": pl.Series([len(raw) for raw in chunk.raws], dtype=pl.Int64),
                "raw_hash_high": pl.repeat(0, count, dtype=pl.Int64, eager=True),
                "raw_hash_low": pl.repeat(0, count, dtype=pl.Int64, eager=True),
            }
        )
        names = {1: self._file.relative_to(self.plan.landing).as_posix()}
        batch = LineBatch(chunk.resource_type, "part", list(chunk.raws), lines, list(range(count)), names)
        LinesTransform(self.worker, batch, Contents(self.worker)).run()
