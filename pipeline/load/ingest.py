"""From a landed export to committed rows: transform in worker processes, then publish. Used by commands and Dagster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import psycopg

from pipeline.core.errors import UsageError
from pipeline.core.identifier_secret import identifier_secret
from pipeline.core.settings import SiteSettings
from pipeline.erasure.later import without_erased
from pipeline.fhir.identity import SurrogateKeys
from pipeline.fhir.ndjson import Chunk
from pipeline.landing.chunks import CHUNK_BYTES, plan_chunks
from pipeline.landing.store import LandedExport, LandedFile, LandingStore
from pipeline.load.deletions import stage_deletions
from pipeline.load.fingerprints import fingerprints, site_mapping
from pipeline.load.landed_lines import with_binaries_found
from pipeline.load.worker import TransformRuns, memory_limit
from pipeline.publication.known_cache import KnownCache, known_folder
from pipeline.publication.publish import PublicationReport, publish_export
from pipeline.publication.steps.stand_ins import about_owners
from pipeline.staging import schemas
from pipeline.staging.facts import write_facts
from pipeline.staging.parts import StagedExport, clear_site, staging_for
from pipeline.staging.schemas import FileLines
from pipeline.transform.chunks import ChunkPiece, ChunkTask, LinesTask, transform_chunk, transform_lines
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.mapping.mappings import Mappings, load_mappings
from pipeline.transform.plan import TransformPlan
from pipeline.warehouse.configured_sites import refuse_missing_site
from pipeline.warehouse.copying import read_frame
from pipeline.warehouse.export_jobs import SiteWork, site_lock
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors
from pipeline.warehouse.vocabulary import ensure_index

__all__ = ["IngestProgress", "ingest"]

#: (stage, done, total): bytes while transforming, nothing known while publishing.
IngestProgress = Callable[[str, int, int], None]

#: Resources whose order is lower leave facts that the others use.
_FACT_ORDER = 10

_LINE = ["surrogate_id", "file_number", "line"]

#: Nothing is newer.
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)


def ingest(
    runtime: Runtime,
    site: SiteSettings,
    export: LandedExport,
    *,
    force: bool = False,
    over_newer: bool = False,
    confirmed: bool = False,
    progress: IngestProgress | None = None,
) -> PublicationReport:
    """Transform and publish one landed export; an export that is published already is published again unchanged.

    `force` transforms every line, also those that count as unchanged. `over_newer`: also over what newer exports
    said, until the next one comes. `confirmed`: resources that vanished are deleted
    by the site's policy however many they are. Raises SiteBusy when another run of the site holds its lock,
    ConfirmationNeeded, ConfigurationError for a site that has lost its entry in sites.yaml, MappingError,
    VocabularyError, LandingError, WarehouseError, AccountingError.
    """
    report = progress or (lambda _stage, _done, _total: None)
    settings = runtime.settings
    index = ensure_index(
        runtime.url, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema, home=settings.home
    )
    mappings = load_mappings(settings.mappings, site.name, site.mapping, settings.site_mappings_folder)
    marks = fingerprints(runtime, site, mappings, index)
    staged = staging_for(settings.staging, site.name, export.export_id)
    with server_errors(), runtime.connect() as connection, site_lock(connection, site.name, SiteWork.INGEST):
        refuse_missing_site(connection, settings, site.name)
        _refuse_pruned(connection, export)
        clear_site(settings.staging, site.name)
        published = PublicationReport(export.export_id, export.site, index.release)
        export = without_erased(runtime, connection, export)
        started = time.perf_counter()
        known = KnownCache(known_folder(settings.home, site.name), site.name, marks)
        with published.step("known lines"):
            if not force:
                known.refresh(connection)
            connection.commit()  # reading is done: an open transaction would hold up whoever changes these tables
        plan = _plan(runtime, site, export, mappings, index, staged, None if force else known.folder)
        reports = _transform(connection, runtime, plan, export, report, published, over_newer=over_newer)
        deleted = stage_deletions(export, staged, SurrogateKeys(site.name, settings.surrogate_salt))
        published.transform_seconds = time.perf_counter() - started
        report("publish", 0, 0)
        publish_export(
            runtime,
            export,
            staged,
            published,
            files=[*_by_file(export, reports), *deleted],
            fingerprints=marks,
            known=known,
            confirmed=confirmed,
            over_newer=over_newer,
        )
        with published.step("known lines"):
            known.apply()
        staged.clear()
    return published


def _refuse_pruned(connection: psycopg.Connection, export: LandedExport) -> None:
    """A warehouse that was restored, or is new, may load what is left of an export; one that has loaded it knows more."""
    if export.pruned_at is None:
        return
    row = connection.execute(
        "SELECT published_at IS NULL, ARRAY(SELECT file_number FROM export_file WHERE export_id = job.export_id)"
        " FROM export_job AS job WHERE export_id = %s",
        [export.export_id],
    ).fetchone()
    left = {file.number for file in (*export.files, *export.deleted)}
    if row is None or not row[0] or left != set(row[1]):
        raise UsageError(
            f"Export {export.export_id} of site {export.site} was pruned on {export.pruned_at:%Y-%m-%d}: landing holds only"
            " those of its lines that are needed.",
            "Its rows are in the warehouse. Load a newer export; `landing_keep` says how long exports stay whole.",
        )


def _plan(
    runtime: Runtime,
    site: SiteSettings,
    export: LandedExport,
    mappings: Mappings,
    index: ConceptIndex,
    staged: StagedExport,
    known: Path | None,
) -> TransformPlan:
    verified = index.verify_fixed(mappings.fixed_concepts)
    return TransformPlan(
        site=site_mapping(site),
        instance_zone=runtime.settings.time_zone,
        surrogate_salt=runtime.settings.surrogate_salt,
        identifier_secret=identifier_secret(runtime.settings),
        as_of=export.transaction_time.astimezone(site.zone).date(),
        mappings=mappings,
        index=index,
        fixed={concept_id: found.use_concept_id for concept_id, found in verified.items()},
        known=known,
        facts=staged.folder / "facts",
        staged=staged,
        landing=export.folder.parent,
    )


# --- transform -----------------------------------------------------------------------------------------------------


def _transform(
    connection: psycopg.Connection,
    runtime: Runtime,
    plan: TransformPlan,
    export: LandedExport,
    progress: IngestProgress,
    published: PublicationReport,
    *,
    over_newer: bool = False,
) -> list[FileLines]:
    """Run all chunks: first the types that leave facts, then, with their facts, the others."""
    first = [file for file in export.files if _order(plan.mappings, file) < _FACT_ORDER]
    first.sort(key=lambda file: (_order(plan.mappings, file), file.number))
    others = [file for file in export.files if _order(plan.mappings, file) >= _FACT_ORDER]
    total = sum(file.bytes for file in export.files)
    done = 0
    reports: list[FileLines] = []
    chunk_bytes = runtime.sizes.chunk or CHUNK_BYTES
    workers = runtime.settings.workers
    limit = memory_limit(runtime.settings.worker_memory_mb, workers)
    mark = runtime.settings.home / "transforming" / plan.site.name
    with TransformRuns(plan, workers, limit, total, mark, runtime.sizes.in_process) as runs:
        published.start_seconds = runs.start()
        for files in (first, others):
            with published.step("facts first" if files is first else "other types"):
                left: list[tuple[ChunkTask, int]] = []
                for task, found in runs.run(transform_chunk, _tasks(export, files, chunk_bytes)):
                    reports += found.files
                    if found.waiting_bytes:
                        left.append((task, found.waiting_bytes))
                    done += task.bytes
                    progress("transform", done, total)
                for _ in runs.run(transform_lines, _together(left, chunk_bytes)):
                    progress("transform", done, total)
            if files is first:
                with published.step("facts"):
                    time = _LATEST if over_newer else export.transaction_time
                    _write_facts(connection, plan, export.export_id, time)
                    connection.commit()
    return reports


def _order(mappings: Mappings, file: LandedFile) -> int:
    mapping = mappings.resources.get(file.resource_type)
    return mapping.order if mapping else _FACT_ORDER


def _tasks(export: LandedExport, files: Iterable[LandedFile], chunk_bytes: int) -> Iterator[ChunkTask]:
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


def _together(left: Iterable[tuple[ChunkTask, int]], chunk_bytes: int) -> Iterator[LinesTask]:
    """Chunks of one type that left new lines, until these are as much as a chunk."""
    by_type: dict[str, tuple[list[ChunkTask], int]] = {}
    for chunk, size in left:
        chunks, waiting = by_type.get(chunk.resource_type, ([], 0))
        if chunks and waiting + size > chunk_bytes:
            yield LinesTask(tuple(chunks), chunk.resource_type)
            chunks, waiting = [], 0
        by_type[chunk.resource_type] = ([*chunks, chunk], waiting + size)
    for resource_type, (chunks, _) in by_type.items():
        yield LinesTask(tuple(chunks), resource_type)


def _write_facts(
    connection: psycopg.Connection, plan: TransformPlan, export_id: int, transaction_time: datetime
) -> None:
    """Facts of the lines of this export that count, and of the warehouse for all other resources."""
    columns = ["surrogate_id", "name", "value", "owner_surrogate_id"]
    taken = _taken(connection, plan, transaction_time).lazy()
    staged = plan.staged.scan(schemas.REFERENCE_VALUE).join(
        taken, left_on=["owner_surrogate_id", "file_number", "line"], right_on=_LINE, how="semi"
    )
    stored = read_frame(
        connection,
        "SELECT surrogate_id, name, value, owner_surrogate_id FROM reference_value",
        {"surrogate_id": pl.Int64, "name": pl.String, "value": pl.String, "owner_surrogate_id": pl.Int64},
    )
    landing = LandingStore(plan.landing.parent)
    stored = with_binaries_found(connection, landing, plan.site.name, export_id, stored)
    kept = stored.lazy().join(taken, left_on="owner_surrogate_id", right_on="surrogate_id", how="anti")
    write_facts(plan.facts, about_owners(pl.concat([staged.select(columns), kept.select(columns)])).lazy())


def _taken(connection: psycopg.Connection, plan: TransformPlan, transaction_time: datetime) -> pl.DataFrame:
    """Lines whose facts count, by the rules of publication: the last of a resource, and none that is older than
    what is known."""
    changed = plan.staged.scan(schemas.OUTCOME).filter(pl.col("outcome") != "rejected").select(_LINE)
    unchanged = plan.staged.scan(schemas.UNCHANGED).select(_LINE)
    every = pl.concat([changed, unchanged.join(changed.select("surrogate_id"), on="surrogate_id", how="semi")])
    last = every.sort("file_number", "line").unique("surrogate_id", keep="last")
    newer = read_frame(
        connection,
        # Looked for only when there is a newer export at all: no night need scan the states for it.
        "SELECT surrogate_id FROM resource_state WHERE as_of > %s"
        " AND surrogate_id IN (SELECT owner_surrogate_id FROM reference_value) AND EXISTS (SELECT FROM export_job"
        " WHERE site = %s AND published_at IS NOT NULL AND transaction_time > %s)",
        {"surrogate_id": pl.Int64},
        (transaction_time, plan.site.name, transaction_time),
    )
    return changed.join(last, on=_LINE, how="semi").join(newer.lazy(), on="surrogate_id", how="anti").collect()


def _by_file(export: LandedExport, reports: Sequence[FileLines]) -> list[FileLines]:
    lines = {file.number: 0 for file in export.files}
    unchanged, by_content = dict(lines), dict(lines)
    for report in reports:
        lines[report.file_number] += report.lines
        unchanged[report.file_number] += report.unchanged
        by_content[report.file_number] += report.unchanged_by_content
    return [FileLines(number, lines[number], unchanged[number], by_content[number]) for number in lines]
