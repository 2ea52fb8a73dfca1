"""How an export is cut into the tasks of worker processes, in which order, and what these are given.

What a file is and where it lies is `landing`; what is done with a task is `pipeline.load.worker`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.identifier_secret import identifier_secret
from pipeline.core.settings import SiteSettings
from pipeline.fhir.ndjson import Chunk
from pipeline.landing.chunks import plan_chunks
from pipeline.landing.store import LandedExport, LandedFile
from pipeline.load.fingerprints import SiteRules, site_mapping
from pipeline.load.tasks import ChunkPiece, ChunkTask, LinesTask, WorkerPlan
from pipeline.staging.parts import StagedExport
from pipeline.transform.mapping.mappings import Mappings
from pipeline.transform.plan import TransformPlan
from pipeline.warehouse.runtime import Runtime

__all__ = ["FACT_ORDER", "PLACE_ORDER", "Stage", "chunk_tasks", "lines_tasks", "stages_of", "worker_plan"]

#: Resources whose order is lower leave facts that the others use.
FACT_ORDER = 10
#: And of those, the ones below this leave facts of places and devices, which the others of them (Encounter,
#: DeviceUseStatement) use.
PLACE_ORDER = 2


@dataclass(frozen=True)
class Stage:
    """Files that are transformed at the same time. `name`: that of a step of the load's report."""

    name: str
    files: tuple[LandedFile, ...]


def stages_of(export: LandedExport, mappings: Mappings) -> tuple[Stage, Stage, Stage]:
    """The types that leave facts of places, people and things; Encounters and uses of devices, which use some of those;
    then, with the facts of both, all others. Each in the order of their mappings."""

    def order(file: LandedFile) -> int:
        mapping = mappings.resources.get(file.resource_type)
        return mapping.order if mapping else FACT_ORDER

    files = sorted(export.files, key=lambda file: (order(file), file.number))
    places = tuple(file for file in files if order(file) < PLACE_ORDER)
    visits = tuple(file for file in files if PLACE_ORDER <= order(file) < FACT_ORDER)
    others = tuple(file for file in export.files if order(file) >= FACT_ORDER)
    return Stage("facts first", places), Stage("visits", visits), Stage("other types", others)


def worker_plan(
    runtime: Runtime,
    site: SiteSettings,
    export: LandedExport,
    rules: SiteRules,
    staged: StagedExport,
    known: Path | None,
) -> WorkerPlan:
    """What the worker processes of one load are given. `known`: the files of known lines; None: nothing is known."""
    verified = rules.index.verify_fixed(rules.mappings.fixed_concepts)
    transform = TransformPlan(
        site=site_mapping(site),
        instance_zone=runtime.settings.time_zone,
        surrogate_salt=runtime.settings.surrogate_salt,
        identifier_secret=identifier_secret(runtime.settings),
        as_of=export.transaction_time.astimezone(site.zone).date(),
        mappings=rules.mappings,
        index=rules.index,
        fixed={concept_id: found.use_concept_id for concept_id, found in verified.items()},
    )
    return WorkerPlan(transform, known, staged.folder / "facts", staged, export.folder.parent)


def chunk_tasks(export: LandedExport, files: Iterable[LandedFile], chunk_bytes: int) -> Iterator[ChunkTask]:
    """Large files in several chunks, small ones of a type that follow each other in one."""
    resource_type, size = "", 0
    pieces: list[ChunkPiece] = []
    for file in files:
        path = file.path if file.path.is_absolute() else export.folder / file.path
        for chunk in _chunks(file, path, chunk_bytes):
            if pieces and (file.resource_type != resource_type or size + chunk.length > chunk_bytes):
                yield ChunkTask(tuple(pieces), resource_type)
                pieces, size = [], 0
            resource_type = file.resource_type
            pieces.append(ChunkPiece(path, file.number, chunk))
            size += chunk.length
    if pieces:
        yield ChunkTask(tuple(pieces), resource_type)


def _chunks(file: LandedFile, path: Path, chunk_bytes: int) -> Iterable[Chunk]:
    """A file that is smaller than a chunk is one, and need not be read for it."""
    return [Chunk(0, file.bytes, 1)] if 0 < file.bytes < chunk_bytes else plan_chunks(path, chunk_bytes)


def lines_tasks(waiting: Iterable[tuple[ChunkTask, int]], chunk_bytes: int) -> Iterator[LinesTask]:
    """Chunks of one type that left new lines (and how many bytes), until these are as much as a chunk."""
    by_type: dict[str, tuple[list[ChunkTask], int]] = {}
    for chunk, size in waiting:
        chunks, bytes_before = by_type.get(chunk.resource_type, ([], 0))
        if chunks and bytes_before + size > chunk_bytes:
            yield LinesTask(tuple(chunks), chunk.resource_type)
            chunks, bytes_before = [], 0
        by_type[chunk.resource_type] = ([*chunks, chunk], bytes_before + size)
    for resource_type, (chunks, _) in by_type.items():
        yield LinesTask(tuple(chunks), resource_type)
