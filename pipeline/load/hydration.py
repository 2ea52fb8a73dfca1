"""Hydration: what an export refers to and lacks is fetched by reference, each resource once (rule 11).

The result is landed as an export of kind `hydration` and loaded like any other (`pipeline.load.load`), so that accounts,
lineage and dead letters hold for it. Each batch is durable before the next one: its files first, then what was asked for
(`etl.hydrated_reference`) in one commit. A process that dies leaves a draft; the next hydration finishes it.

Nothing here stops a load: a reference that is refused is recorded and left out; a server that cannot be reached ends the
hydration, not the load, and the rest is fetched by the next run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta

import polars as pl
import psycopg

from omop_schema.exports import STATES_WITH_FILES, ExportKind, ExportState, sql_values
from pipeline.core.errors import ConfigurationError, EpicOmopError, LandingError, PermanentError, TransientError
from pipeline.core.settings import PERSONAL_TYPES, RESULT_TYPE, SiteSettings
from pipeline.core.workflow import about_export
from pipeline.extract.bulk import new_job
from pipeline.extract.rest.client import RestClient
from pipeline.extract.rest.reads import ReferenceFetcher
from pipeline.extract.rest.references import MissingReferences
from pipeline.extract.rest.session import rest_session
from pipeline.fhir.identity import SurrogateKeys
from pipeline.landing.references import member_references, references_in
from pipeline.landing.store import LandedExport, LandedFile, LandingDraft
from pipeline.load import hydrated
from pipeline.load.landed_lines import read_landed
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = [
    "Hydration",
    "HydrationProgress",
    "can_hydrate",
    "early_types",
    "hydrate",
    "hydrate_export",
    "late_types",
    "newest_exports",
]

_log = logging.getLogger(__name__)

#: (references fetched, references to be fetched so far)
HydrationProgress = Callable[[int, int], None]

#: References between two commits, and files: at most one file a type and batch.
_BATCH = 500

#: Fetched resources refer to others: a role to its practitioner, a clinic to its hospital.
_MOST_ROUNDS = 10


@dataclass
class Hydration:
    """The result of a hydration. Counts are of references, by resource type or by reason."""

    #: Landed and not loaded yet, oldest first; those that an interrupted run left are among them.
    landed: list[LandedExport] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    #: Asked for again by the next run: the server failed.
    failed: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    #: Types that the site does not let us read.
    refused_types: tuple[str, ...] = ()
    #: Why it ended before all was asked for.
    error: EpicOmopError | None = None

    @property
    def asked(self) -> int:
        return self.found.total() + self.missing.total() + self.failed.total()

    def summary(self) -> str:
        """One sentence for people and logs: counts only."""
        parts = [f"{self.found.total():,} resources fetched by reference"]
        if self.missing:
            listed = ", ".join(f"{name} {count:,}" for name, count in sorted(self.missing.items()))
            parts.append(f"{self.missing.total():,} not there or refused ({listed})")
        if self.failed:
            parts.append(f"{self.failed.total():,} left for the next run")
        parts += [f"{count:,} not asked for ({reason})" for reason, count in sorted(self.unusable.items())]
        if self.refused_types:
            parts.append(f"no access to {', '.join(self.refused_types)}")
        return "; ".join(parts) + "."


def can_hydrate(site: SiteSettings, export: LandedExport) -> bool:
    """Whether what an export lacks is fetched: the site says so, and it is no export of fetched or repeated lines."""
    return bool(site.hydrate and site.fhir_url) and export.kind not in (ExportKind.HYDRATION, ExportKind.REPLAY)


def early_types(site: SiteSettings) -> tuple[str, ...]:
    """Types that patients share: they are fetched before what refers to them is loaded."""
    return tuple(name for name in site.hydrate_types if name not in PERSONAL_TYPES)


def late_types(site: SiteSettings) -> tuple[str, ...]:
    """Types that belong to a person, who is to be loaded first."""
    return tuple(name for name in site.hydrate_types if name in PERSONAL_TYPES)


def hydrate_export(
    runtime: Runtime,
    site: SiteSettings,
    export: LandedExport,
    types: Collection[str],
    progress: HydrationProgress | None = None,
) -> Hydration:
    """`hydrate` for a load that goes through all the same: what it raises because others work is `Hydration.error`."""
    try:
        return hydrate(runtime, site, [export], types, progress=progress) if types else Hydration()
    except TransientError as error:  # another process hydrates this site
        return Hydration(error=error)


def newest_exports(runtime: Runtime, site: SiteSettings) -> list[LandedExport]:
    """The newest landed export of each group, and the newest crawl and folder, as far as their files are here."""
    with runtime.connect() as connection:
        rows = connection.execute(
            "SELECT DISTINCT ON (kind, group_id) export_id FROM export_job WHERE site = %s AND kind <> ALL(%s)"
            f" AND state IN {sql_values(STATES_WITH_FILES)} ORDER BY kind, group_id, transaction_time DESC, export_id DESC",
            (site.name, [ExportKind.REPLAY, ExportKind.HYDRATION]),
        ).fetchall()
    numbers = sorted(row[0] for row in rows)
    found = []
    for number in numbers:
        with suppress(LandingError):  # its folder was removed, or is damaged
            found.append(runtime.landing.open(site.name, number))
    return found


def hydrate(
    runtime: Runtime,
    site: SiteSettings,
    exports: Sequence[LandedExport],
    types: Collection[str] | None = None,
    *,
    client: RestClient | None = None,
    progress: HydrationProgress | None = None,
) -> Hydration:
    """Fetch and land what the exports and the loaded rows refer to, of these types (default: the site's).

    What is in the exports, in the warehouse, or was asked for within `hydrate_again_days` is not asked for. Raises
    SiteBusy while another process hydrates the site, LandingError, WarehouseError; what goes wrong at the server
    is `Hydration.error`.
    """
    chosen = tuple(site.hydrate_types if types is None else types)
    with runtime.connect() as connection, export_jobs.site_lock(connection, site.name, export_jobs.SiteWork.HYDRATION):
        result = Hydration(landed=_finish_others(runtime, connection, site))
        missing = _missing_references(runtime, connection, site, exports, chosen)
        connection.commit()
        if not missing.missing.is_empty():
            try:
                with nullcontext(client) if client else rest_session(runtime, site, site.hydrate_types) as used:
                    _HydrationRun(runtime, connection, site, used, missing, result, progress).run()
            except ConfigurationError as error:  # such as a key that cannot be read
                result.error = error
        result.unusable = Counter({reason: len(texts) for reason, texts in missing.unusable.items()})
    if result.asked or result.error:
        _log.info("Hydration of site %s: %s", site.name, result.summary())
    return result


def _finish_others(runtime: Runtime, connection: psycopg.Connection, site: SiteSettings) -> list[LandedExport]:
    """Hydrations that a process left landed, or half landed: what they fetched is not fetched again, but loaded."""
    for job in export_jobs.jobs_of_kind(connection, site.name, ExportKind.HYDRATION, ExportState.REQUESTED):
        with _failing_where_damaged(connection, job):
            _finish(runtime, connection, job, "The process ended before anything was fetched.")
    landed = []
    for job in export_jobs.jobs_of_kind(connection, site.name, ExportKind.HYDRATION, ExportState.LANDED):
        with _failing_where_damaged(connection, job):
            landed.append(runtime.landing.open(site.name, job.export_id))
    return landed[::-1]


@contextmanager
def _failing_where_damaged(connection: psycopg.Connection, job: ExportJob) -> Iterator[None]:
    """A hydration whose files are gone or damaged has failed: what it fetched is asked for again."""
    try:
        yield
    except LandingError as error:
        connection.rollback()
        hydrated.forget(connection, job.export_id)
        export_jobs.mark_failed(connection, job.export_id, error.message)
        connection.commit()


def _finish(runtime: Runtime, connection: psycopg.Connection, job: ExportJob, nothing: str) -> LandedExport | None:
    """The hydration as a landed export; None, and the job skipped, where it holds no file."""
    if runtime.landing.is_finished(job.site, job.export_id):
        export = runtime.landing.open(job.site, job.export_id)
    else:
        draft = runtime.landing.begin(job.site, job.export_id)
        files = draft.complete()
        if not files:
            runtime.landing.discard(job.site, job.export_id)
            export_jobs.mark_skipped(connection, job.export_id, nothing)
            connection.commit()
            return None
        export = draft.finish(ExportKind.HYDRATION, job.requested_at, files)
    export_jobs.save_landed(connection, export, runtime.clock.now())
    connection.commit()
    return export


def _missing_references(
    runtime: Runtime,
    connection: psycopg.Connection,
    site: SiteSettings,
    exports: Sequence[LandedExport],
    types: Sequence[str],
) -> MissingReferences:
    mapped = load_mappings(runtime.settings.mappings, site.name).resources
    asked_before = runtime.clock.now() - timedelta(days=site.hydrate_again_days)
    known = hydrated.known_ids(connection, site.name, types, asked_before)
    missing = MissingReferences(site, SurrogateKeys(site.name, runtime.settings.surrogate_salt), types, known)
    for export in exports:
        job = export_jobs.get_job(connection, export.export_id)
        if job.state != ExportState.PUBLISHED:  # otherwise the warehouse knows them
            missing.add_landed(file for file in export.files if file.resource_type in types)
    for export in exports:
        missing.scan(export, mapped)
    _add_pending(runtime, connection, site, missing)
    return missing


def _add_pending(
    runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, missing: MissingReferences
) -> None:
    """What rows of other exports wait for: their lines are read again for the literal references."""
    targets = hydrated.pending_targets(connection, site.name, missing.types)
    targets = targets.join(missing.known, on="surrogate_id", how="anti")
    targets = targets.join(missing.missing, on="surrogate_id", how="anti")
    if targets.is_empty():
        return
    pending = MissingReferences(site, missing.keys, missing.types, missing.known)
    # A line that no export holds any more refers to nothing that could be asked for.
    read = read_landed(runtime.landing, site.name, hydrated.pending_lines(connection, site.name, missing.types))
    pending.scan_lines([found.raw for found in read.found.values()])
    found = pending.missing.join(targets, on="surrogate_id", how="semi")
    missing.missing = pl.concat([missing.missing, found]).unique("surrogate_id", maintain_order=True)


class _HydrationRun:
    def __init__(
        self,
        runtime: Runtime,
        connection: psycopg.Connection,
        site: SiteSettings,
        client: RestClient,
        missing: MissingReferences,
        result: Hydration,
        progress: HydrationProgress | None,
    ) -> None:
        self._runtime = runtime
        self._connection = connection
        self._site = site
        self._fetcher = ReferenceFetcher(client)
        self._missing = missing
        self._result = result
        self._progress = progress or (lambda _done, _total: None)
        self._total = 0
        self._files = 0
        self._last_failure: EpicOmopError | None = None
        every = (*site.hydrate_types, *missing.types)
        self._shared = tuple(name for name in dict.fromkeys(every) if name not in PERSONAL_TYPES)

    def run(self) -> None:
        try:
            self._fetcher.exclude_not_granted((*self._missing.types, *self._shared))
        except (TransientError, PermanentError) as error:
            self._result.error = error
            return
        types = tuple(self._missing.types)
        job = new_job(self._runtime, self._connection, self._site.name, ExportKind.HYDRATION, resource_types=types)
        draft = self._runtime.landing.begin(self._site.name, job.export_id)
        with about_export(job.export_id):
            self._rounds(draft)
        self._result.refused_types = self._fetcher.refused_types
        landed = _finish(self._runtime, self._connection, job, "Nothing of what was asked for is there.")
        if landed:
            self._result.landed.append(landed)

    def _rounds(self, draft: LandingDraft) -> None:
        for _ in range(_MOST_ROUNDS):
            asked = self._missing.missing
            if asked.is_empty():
                return
            self._total += asked.height
            following: set[str] = set()
            for batch in asked.iter_slices(_BATCH):
                following |= self._batch(draft, batch)
                if self._fetcher.is_down:
                    self._result.error = self._last_failure
                    return
            self._missing = self._follow(asked, following)

    def _follow(self, asked: pl.DataFrame, references: Collection[str]) -> MissingReferences:
        """What the fetched resources refer to in their turn, as far as it is not known."""
        asked_before = self._runtime.clock.now() - timedelta(days=self._site.hydrate_again_days)
        loaded = hydrated.known_ids(self._connection, self._site.name, self._shared, asked_before)
        self._connection.commit()
        known = pl.concat([self._missing.known, asked.select("surrogate_id"), loaded]).unique()
        # Panels have panels as members; what else belongs to a person is not asked for by what was fetched.
        results = [name for name in self._missing.types if name == RESULT_TYPE]
        following = replace(self._missing, types=(*self._shared, *results), known=known, missing=asked.clear())
        following.add(references)
        return following

    def _batch(self, draft: LandingDraft, batch: pl.DataFrame) -> set[str]:
        """Fetch, land, record, commit. Returns the references in what was found."""
        ids = dict(zip(batch["reference"], batch["surrogate_id"], strict=True))
        found: dict[str, list[bytes]] = {}
        rows = []
        for response in self._fetcher.responses(list(ids)):
            kind = response.resource_type
            if response.failure:
                self._result.failed[kind] += 1
                self._last_failure = response.failure
                continue
            if response.line is None:
                self._result.missing[kind] += 1
            else:
                self._result.found[kind] += 1
                found.setdefault(kind, []).append(response.line)
            state = "missing" if response.line is None else "found"
            rows.append((ids[response.reference], response.reference, state, response.status))
        for kind, lines in sorted(found.items()):
            self._files += 1
            _write(draft, self._files, kind, lines)
        self._record(draft.export_id, rows)
        self._progress(self._result.asked, self._total)
        shared = {one for lines in found.values() for one in references_in(b"\n".join(lines), self._shared)}
        return shared | set(member_references(found.get(RESULT_TYPE, ())))

    def _record(self, export_id: int, rows: Sequence[tuple[int, str, str, int | None]]) -> None:
        schema = {"surrogate_id": pl.Int64, "reference": pl.String, "state": pl.String, "status": pl.Int64}
        answers = pl.DataFrame(rows, schema=schema, orient="row")
        hydrated.record(self._connection, self._site.name, export_id, answers, self._runtime.clock.now())
        self._connection.commit()


def _write(draft: LandingDraft, number: int, resource_type: str, lines: Sequence[bytes]) -> LandedFile:
    with draft.writer(number, resource_type) as writer:
        for line in lines:
            writer.write(line + b"\n")
        return draft.keep(writer, number, resource_type)
