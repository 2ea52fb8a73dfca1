"""The transform stage alone, in this process, without a server: what tests give it, and what they ask of it.

`transform`: a few resources in, outcomes, rows, issues and facts out. `Transforming`: lines in chunks of any cut, the rows of
staging out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import MAPPINGS_FOLDER, SiteSettings
from pipeline.landing.chunks import plan_chunks
from pipeline.load.fingerprints import site_mapping
from pipeline.load.plan import FACT_ORDER, PLACE_ORDER
from pipeline.load.tasks import ChunkPiece, ChunkTask, WorkerPlan
from pipeline.load.worker import LineWorker
from pipeline.staging import schemas
from pipeline.staging.facts import write_facts
from pipeline.staging.parts import StagedExport
from pipeline.transform.concepts import index as concept_index
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

__all__ = [
    "AS_OF",
    "PATIENT",
    "Lines",
    "Rows",
    "Transformed",
    "Transforming",
    "index_of",
    "lines_of",
    "plan_of",
    "transform",
    "write_no_facts",
]

AS_OF = date(2025, 1, 31)
PATIENT = {"reference": "Patient/p1"}

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


def plan_of(
    index: ConceptIndex,
    facts: Path,
    staged: StagedExport,
    landing: Path,
    *,
    instance_zone: str = "UTC",
    **site: Any,
) -> WorkerPlan:
    """What a worker of a site with these settings is given."""
    settings = SiteSettings(name="transforming", **site)
    mappings = load_mappings(MAPPINGS_FOLDER, settings.name, settings.mapping)
    fixed = {known: found.use_concept_id for known, found in index.verify_fixed(mappings.fixed_concepts).items()}
    transform = TransformPlan(
        site=site_mapping(settings),
        instance_zone=instance_zone,
        surrogate_salt="",
        identifier_secret=b"",
        as_of=AS_OF,
        mappings=mappings,
        index=index,
        fixed=fixed,
    )
    return WorkerPlan(transform, known=None, facts=facts, staged=staged, landing=landing)


def index_of(folder: Path, codes: Iterable[tuple[str, str, int, str]] = ()) -> ConceptIndex:
    """A concept index of Standard concepts (vocabulary, code, id, domain), made without a server."""
    rows = [(vocabulary, code, number, domain, "S", None, 1, number, domain, vocabulary, None, None)
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


@dataclass
class Transformed:
    """What the transform stage left, by `Type/id`."""

    outcomes: dict[str, str] = field(default_factory=dict)
    #: path of a rejection
    paths: dict[str, str | None] = field(default_factory=dict)
    #: reference → table → rows
    rows: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    #: reference → (code, path), in order
    issues: dict[str, list[tuple[str, str | None]]] = field(default_factory=dict)
    #: reference of the owner → name → values
    facts: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def row(self, reference: str, table: str) -> dict[str, Any]:
        (row,) = self.rows[reference][table]
        return row


def transform(
    folder: Path,
    resources: Iterable[dict[str, Any]],
    options: MappingOptions | None = None,
    *,
    site_zone: str = "UTC",
    instance_zone: str = "UTC",
    lines: Mapping[str, Iterable[bytes]] | None = None,
    index: Mapping[str, pl.DataFrame] | None = None,
) -> Transformed:
    """Resources of any types, in the order of their mappings; concepts are those that the mappings name.

    `lines`: by type, what stands in the file as it is. `index`: files of the concept index that are not empty.
    """
    by_type: dict[str, list[bytes]] = {}
    for resource in resources:
        by_type.setdefault(resource["resourceType"], []).append(orjson.dumps(resource))
    for kind, raws in (lines or {}).items():
        by_type.setdefault(kind, []).extend(raws)
    for name, value in vars(concept_index).items():
        if name.endswith("_FILE"):
            schema = getattr(concept_index, f"{name.removesuffix('_FILE')}_SCHEMA")
            (index or {}).get(value, pl.DataFrame(schema=dict(schema))).write_parquet(folder / value)
    own = {"mapping": options} if options else {}
    plan = plan_of(
        ConceptIndex(folder, "test release", "hash"),
        folder / "facts",
        StagedExport(folder / "staged"),
        folder,
        instance_zone=instance_zone,
        time_zone=site_zone,
        **own,
    )
    mappings = plan.transform.mappings
    fixed = {number: number for number in mappings.fixed_concepts}
    plan = replace(plan, transform=replace(plan.transform, fixed=fixed))
    orders = {kind: mappings.resources[kind].order for kind in by_type}
    number = 0
    for order in sorted(set(orders.values())):
        worker = LineWorker(plan)
        for kind in sorted(kind for kind in by_type if orders[kind] == order):
            number += 1
            file = folder / f"{kind}.ndjson"
            file.write_bytes(b"\n".join(by_type[kind]) + b"\n")
            (chunk,) = plan_chunks(file)
            worker.compare(ChunkTask((ChunkPiece(file, number, chunk),), kind))
        facts = plan.staged.scan(schemas.REFERENCE_VALUE).select("surrogate_id", "name", "value")
        write_facts(plan.facts, facts)
    return _read(plan.staged)


def _read(staged: StagedExport) -> Transformed:
    found = Transformed()
    names: dict[int, str] = {}
    for row in staged.scan(schemas.OUTCOME).collect().iter_rows(named=True):
        name = f"{row['resource_type']}/{row['resource_id']}"
        names[row["surrogate_id"]] = name
        found.outcomes[name] = row["outcome"]
        if row["outcome"] == "excluded":
            found.outcomes[name] += f":{row['reason']}"
    for row in staged.scan(schemas.REJECTION).collect().iter_rows(named=True):
        name = f"{row['resource_type']}/{row['resource_id']}"
        found.outcomes[name], found.paths[name] = f"rejected:{row['code']}", row["path"]
    for row in staged.scan(schemas.ISSUE).collect().iter_rows(named=True):
        found.issues.setdefault(names[row["surrogate_id"]], []).append((row["code"], row["path"]))
    for row in staged.scan(schemas.REFERENCE_VALUE).collect().iter_rows(named=True):
        of_owner = found.facts.setdefault(names[row["owner_surrogate_id"]], {})
        of_owner.setdefault(row["name"], []).append(row["value"])
    for table in staged.kinds():
        if table not in schemas.SCHEMAS and not table.startswith("exact_"):
            for row in staged.scan(table).collect().iter_rows(named=True):
                found.rows.setdefault(names[row["surrogate_id"]], {}).setdefault(table, []).append(row)
    for issues in found.issues.values():
        issues.sort(key=str)
    return found
