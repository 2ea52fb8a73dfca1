"""A landed export on its way into the warehouse, step by step: the one entry of commands and of Dagster.

register → compare → transform → gather → publish → follow-ups → hydrate → again. A step is a function of a `Load`; what it
does in detail is a module of its own. Who waits, asks or prints is not here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg

from pipeline.core.instance_zone import keep_zone
from pipeline.core.settings import SiteSettings
from pipeline.erasure.later import without_erased
from pipeline.fhir.identity import SurrogateKeys
from pipeline.landing.chunks import CHUNK_BYTES
from pipeline.landing.store import LandedExport
from pipeline.load.deletions import stage_deletions
from pipeline.load.facts import gather_facts, gather_first_facts
from pipeline.load.fingerprints import SiteRules, site_rules
from pipeline.load.follow_ups import FollowUps, site_work
from pipeline.load.hydration import Hydration, HydrationProgress, can_hydrate, early_types, hydrate_export, late_types
from pipeline.load.landed_exports import refuse_pruned
from pipeline.load.plan import Stage, chunk_tasks, lines_tasks, stages_of, worker_plan
from pipeline.load.processes import TransformRuns, memory_limit
from pipeline.load.tasks import ChunkTask, WorkerPlan
from pipeline.load.vocabulary_changes import follow_vocabulary, new_uses
from pipeline.load.worker import compare_chunk, transform_lines
from pipeline.publication.dead_letters import RawLine
from pipeline.publication.known_cache import KnownCache, known_folder
from pipeline.publication.publish import PublicationReport, publish_export
from pipeline.staging.parts import clear_site, staging_for
from pipeline.staging.schemas import FileLines
from pipeline.warehouse.configured_sites import refuse_missing_site
from pipeline.warehouse.export_jobs import SiteWork, site_lock
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors

__all__ = ["REPLAYED", "USUAL", "LoadOptions", "LoadProgress", "LoadResult", "load", "load_alone", "load_in_turn"]

#: (stage, done, total): bytes while transforming, nothing known while publishing.
LoadProgress = Callable[[str, int, int], None]

#: Nothing is newer.
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
#: After so many rounds of what follows a load ends: chains of resources are a few rounds long, and a load that does not end
#: would hold up every later night. What is left is marked as stale, and comes with the next load.
_MOST_ROUNDS = 100
_TOO_MANY_ROUNDS = (
    f"Lines that depend on what was loaded were mapped again {_MOST_ROUNDS} times, and others still depend on them: they are left"
    " to the next load. Report it to the developers of epic-omop: this is a defect."
)


@dataclass(frozen=True)
class LoadOptions:
    """How an export is loaded."""

    #: transform every line, also those that count as unchanged
    force: bool = False
    #: also over what newer exports brought, until the next one comes
    over_newer: bool = False
    #: resources that vanished are deleted by the site's policy however many they are
    confirmed: bool = False
    #: also fetch by reference what the export lacks, where the site's settings say so
    hydrate: bool = False
    progress: LoadProgress = lambda _stage, _done, _total: None
    fetch_progress: HydrationProgress | None = None


USUAL = LoadOptions()
#: Of lines that are mapped again, whatever is known of them.
REPLAYED = LoadOptions(force=True)


@dataclass
class LoadResult:
    """What a load published and fetched."""

    #: the export's own report first, then those of what waited for it
    own: list[PublicationReport] = field(default_factory=list)
    #: of what was fetched for the export
    fetched: list[PublicationReport] = field(default_factory=list)
    hydrations: list[Hydration] = field(default_factory=list)

    @property
    def reports(self) -> list[PublicationReport]:
        return [*self.own, *self.fetched]


@dataclass
class Load:
    """One export that is being loaded. `register` makes it; the steps add what they have done."""

    runtime: Runtime
    site: SiteSettings
    export: LandedExport
    options: LoadOptions
    #: holds the site's lock; nothing is left uncommitted on it
    connection: psycopg.Connection
    rules: SiteRules
    known: KnownCache
    plan: WorkerPlan
    processes: TransformRuns
    report: PublicationReport
    total_bytes: int
    started: float
    #: lines of files and pieces of files that are compared
    lines: list[FileLines] = field(default_factory=list)
    bytes_done: int = 0
    #: chunks whose new lines wait to be transformed, and their bytes
    waiting: list[tuple[ChunkTask, int]] = field(default_factory=list)

    @property
    def chunk_bytes(self) -> int:
        return self.runtime.sizes.chunk or CHUNK_BYTES

    def show_progress(self) -> None:
        self.options.progress("transform", self.bytes_done, self.total_bytes)


# --- the list ---------------------------------------------------------------------------------------------------------


def load(runtime: Runtime, site: SiteSettings, export: LandedExport, options: LoadOptions = USUAL) -> LoadResult:
    """Load a landed export, what waited for it, and with `hydrate` what it lacks. One that is published already is
    published again unchanged.

    First what patients share is fetched, then the export is loaded, then results and documents are fetched: in this order
    nothing has to be mapped twice, because prescriptions find the codes of their medications, and results their persons.
    Raises SiteBusy when another run of the site holds its lock, ConfirmationNeeded, ConfigurationError for a site that has
    lost its entry in sites.yaml, MappingError, VocabularyError, LandingError, WarehouseError, AccountingError; nothing
    because the FHIR server fails (`Hydration.error`).
    """
    result = LoadResult()
    with_hydration = options.hydrate and can_hydrate(site, export)
    if with_hydration:
        hydrate(runtime, site, export, early_types(site), options, result)
    with site_work(runtime, site):
        result.own = load_in_turn(runtime, site, [export], options)
    if with_hydration:
        hydrate(runtime, site, export, late_types(site), options, result)
    return result


def load_in_turn(
    runtime: Runtime,
    site: SiteSettings,
    exports: Iterable[LandedExport],
    options: LoadOptions,
    *,
    replayed: Iterable[RawLine] = (),
) -> list[PublicationReport]:
    """Load exports in their order, then what follows from them, and again what follows from that. The caller has begun
    `site_work`. The first report is that of the first export. `replayed`: the dead letters whose lines these are."""
    reports = latest = [load_alone(runtime, site, export, options) for export in exports]
    follow_ups = FollowUps(runtime, site, {line.id for line in replayed})
    for _ in range(_MOST_ROUNDS):
        if not latest:
            return reports
        replays = follow_ups.land(latest, reports[0])
        latest = [load_alone(runtime, site, export, REPLAYED) for export in replays]
        reports = [*reports, *latest]
    if latest:
        reports[0].warnings.append(_TOO_MANY_ROUNDS)
    return reports


def load_alone(
    runtime: Runtime, site: SiteSettings, export: LandedExport, options: LoadOptions = USUAL
) -> PublicationReport:
    """Load one export and nothing that follows from it."""
    with register(runtime, site, export, options) as load:
        first, visits, others = stages_of(load.export, load.rules.mappings)
        with start_processes(load):
            compare(load, first)
            transform(load, first)
            if visits.files:
                gather_first(load, visits)
                compare(load, visits)
                transform(load, visits)
            gather(load)
            compare(load, others)
            transform(load, others)
        publish(load)
    return load.report


# --- the steps --------------------------------------------------------------------------------------------------------


@contextmanager
def register(runtime: Runtime, site: SiteSettings, export: LandedExport, options: LoadOptions) -> Iterator[Load]:
    """Hold the site's lock, refuse what cannot be loaded, take out who was erased, and gather what decides rows."""
    settings = runtime.settings
    rules = site_rules(runtime, site)
    staged = staging_for(settings.staging, site.name, export.export_id)
    with server_errors(), runtime.connect() as connection, site_lock(connection, site.name, SiteWork.INGEST):
        refuse_missing_site(connection, settings, site.name)
        refuse_pruned(connection, export)
        clear_site(settings.staging, site.name)
        report = PublicationReport(export.export_id, export.site, rules.index.release, rules.index.content_hash)
        export = without_erased(runtime, connection, export)
        started = time.perf_counter()
        keep_zone(settings.home, settings.time_zone)
        known = KnownCache(known_folder(settings.home, site.name), site.name, rules.fingerprints)
        with report.step("vocabulary changes"):
            follow_vocabulary(runtime, connection, site, rules)
        with report.step("known lines"):
            if not options.force:
                known.refresh(connection)
            connection.commit()  # reading is done: an open transaction would hold up whoever changes these tables
        plan = worker_plan(runtime, site, export, rules, staged, None if options.force else known.folder)
        total = sum(file.bytes for file in export.files)
        processes = TransformRuns(
            plan,
            settings.workers,
            memory_limit(settings.worker_memory_mb, settings.workers),
            total,
            settings.home / "transforming" / site.name,
            runtime.sizes.in_process,
        )
        yield Load(runtime, site, export, options, connection, rules, known, plan, processes, report, total, started)


@contextmanager
def start_processes(load: Load) -> Iterator[None]:
    """The worker processes, until all lines are transformed."""
    with load.processes:
        load.report.start_seconds = load.processes.start()
        yield


def compare(load: Load, stage: Stage) -> None:
    """Find the lines that are not loaded as they are. A chunk of which much is new is transformed at once."""
    tasks = chunk_tasks(load.export, stage.files, load.chunk_bytes)
    with load.report.step(stage.name):
        for task, found in load.processes.run(compare_chunk, tasks):
            load.lines += found.files
            if found.waiting_bytes:
                load.waiting.append((task, found.waiting_bytes))
            load.bytes_done += task.bytes
            load.show_progress()


def transform(load: Load, stage: Stage) -> None:
    """Transform the new lines that the comparison left, those of many chunks together."""
    waiting, load.waiting = load.waiting, []
    with load.report.step(stage.name):
        for _ in load.processes.run(transform_lines, lines_tasks(waiting, load.chunk_bytes)):
            load.show_progress()


def gather_first(load: Load, stage: Stage) -> None:
    """Give the types of the second stage what these lines, and the warehouse, know of places and devices."""
    types = {file.resource_type for file in stage.files}
    with load.report.step("gather facts"):
        gather_first_facts(load.connection, load.plan, types, _as_of(load))


def gather(load: Load) -> None:
    """Give the types that come next what these lines, and the warehouse, know of other resources."""
    with load.report.step("gather facts"):
        gather_facts(load.connection, load.plan, load.export.export_id, _as_of(load))


def _as_of(load: Load) -> datetime:
    return _LATEST if load.options.over_newer else load.export.transaction_time


def publish(load: Load) -> None:
    """Commit the staged rows, with the export's deletions, in one transaction; then the known lines follow."""
    keys = SurrogateKeys(load.site.name, load.runtime.settings.surrogate_salt)
    deleted = stage_deletions(load.export, load.plan.staged, keys)
    with load.report.step("vocabulary uses"):
        uses = new_uses(load.connection, load.site.name, load.plan.staged, load.rules)
    load.report.transform_seconds = time.perf_counter() - load.started
    load.options.progress("publish", 0, 0)
    publish_export(
        load.runtime,
        load.export,
        load.plan.staged,
        load.report,
        files=[*_sums_by_file(load), *deleted],
        fingerprints=load.rules.fingerprints,
        known=load.known,
        uses=uses,
        duplicates=load.rules.mappings.duplicates if load.site.count_duplicates else (),
        confirmed=load.options.confirmed,
        over_newer=load.options.over_newer,
    )
    with load.report.step("known lines"):
        load.known.apply()
    load.plan.staged.clear()


def _sums_by_file(load: Load) -> list[FileLines]:
    lines = {file.number: 0 for file in load.export.files}
    unchanged, by_content = dict(lines), dict(lines)
    for piece in load.lines:
        lines[piece.file_number] += piece.lines
        unchanged[piece.file_number] += piece.unchanged
        by_content[piece.file_number] += piece.unchanged_by_content
    return [FileLines(number, lines[number], unchanged[number], by_content[number]) for number in lines]


def hydrate(
    runtime: Runtime,
    site: SiteSettings,
    export: LandedExport,
    types: tuple[str, ...],
    options: LoadOptions,
    result: LoadResult,
) -> None:
    """Fetch what the export lacks of some types, and load it with what follows: as any export, but for the hydration."""
    hydration = hydrate_export(runtime, site, export, types, options.fetch_progress)
    result.hydrations.append(hydration)
    for fetched in hydration.landed:
        with site_work(runtime, site):
            result.fetched += load_in_turn(runtime, site, [fetched], USUAL)
