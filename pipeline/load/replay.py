"""Lines that go through the pipeline once more: dead letters, and what depends on a resource that changed.

They are landed as an export of kind `replay`, so that every rule, account and lineage holds for them as for any other.
Its time is that of the export from which the lines come: a replay never overwrites something newer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter

import psycopg

from omop_schema.exports import ExportKind, ExportState
from pipeline.core.errors import LandingError
from pipeline.core.settings import SiteSettings
from pipeline.extract.bulk import new_job
from pipeline.landing.store import LandedExport
from pipeline.load.ingest import IngestProgress, ingest
from pipeline.load.landed_lines import missing_sentence, note_missing, read_landed
from pipeline.publication import dead_letters
from pipeline.publication.dead_letters import RawLine
from pipeline.publication.publish import LandedLine, PublicationReport
from pipeline.warehouse import export_jobs
from pipeline.warehouse.configured_sites import refuse_missing_site
from pipeline.warehouse.export_jobs import SiteWork, site_lock
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors

__all__ = ["ReplayLine", "ingest_with_follow_ups", "publish_nothing", "replay_dead_letters", "replay_lines"]


@dataclass(frozen=True)
class ReplayLine:
    """A landed line with its type, and the transactionTime of the export that it came in."""

    resource_type: str
    as_of: datetime
    raw: bytes


def ingest_with_follow_ups(
    runtime: Runtime,
    site: SiteSettings,
    export: LandedExport,
    *,
    force: bool = False,
    over_newer: bool = False,
    confirmed: bool = False,
    progress: IngestProgress | None = None,
) -> list[PublicationReport]:
    """Ingest an export, then what waited for it: dead letters whose cause is loaded now, and dependents.

    The site's lock is held until all is done. The first report is the export's own. Errors are those of `ingest`.
    """
    with _site_work(runtime, site):
        reports = [
            ingest(runtime, site, export, force=force, over_newer=over_newer, confirmed=confirmed, progress=progress)
        ]
        return _with_follow_ups(runtime, site, reports)


@contextmanager
def _site_work(runtime: Runtime, site: SiteSettings) -> Iterator[None]:
    """The site's lock, lent to what is done inside. Replays that a process left, landed or half landed, are taken away:
    their lines are still open dead letters, or depend on what is marked as stale."""
    with server_errors(), runtime.connect() as connection, site_lock(connection, site.name, SiteWork.INGEST, lent=True):
        for state in (ExportState.REQUESTED, ExportState.LANDED):
            for job in export_jobs.jobs_of_kind(connection, site.name, ExportKind.REPLAY, state):
                runtime.landing.remove(site.name, job.export_id)
                export_jobs.mark_failed(connection, job.export_id, "The process ended before it was loaded.")
        connection.commit()
        yield


def replay_lines(runtime: Runtime, site: SiteSettings, lines: Sequence[ReplayLine]) -> list[PublicationReport]:
    """Send lines through again, each as of its own time, then what waited for them. Errors are those of `ingest`."""
    with _site_work(runtime, site):
        return _with_follow_ups(runtime, site, _replay(runtime, site, lines))


def publish_nothing(runtime: Runtime, site: SiteSettings) -> list[PublicationReport]:
    """An export without a line, as of the site's newest one: whatever follows from rows and settings is computed again."""
    with runtime.connect() as connection:
        row = connection.execute(
            "SELECT max(transaction_time) FROM export_job WHERE site = %s AND published_at IS NOT NULL", (site.name,)
        ).fetchone()
        if row is None or row[0] is None:
            return []
        export = _land(runtime, connection, site, row[0], [])
    return [ingest(runtime, site, export)]


def _with_follow_ups(runtime: Runtime, site: SiteSettings, reports: list[PublicationReport]) -> list[PublicationReport]:
    latest, tried, mapped = reports, set[int](), set[LandedLine]()
    while latest:
        # What came through may be what others waited for: an encounter that waited for its person dates a condition.
        letters = [letter for letter in _unblocked(runtime, site) if letter.id not in tried]
        tried |= {letter.id for letter in letters}
        # Once each: a dependent whose line is older than what is known would stay one for ever.
        dependents = [line for report in latest for line in report.dependents if line not in mapped]
        mapped |= set(dependents)
        lines = [*_dependents(runtime, site, dependents, reports[0]), *_of_letters(runtime, letters, reports[0])]
        latest = _replay(runtime, site, lines)
        reports += latest
    return reports


def replay_dead_letters(
    runtime: Runtime, site: SiteSettings, *, ids: Sequence[int] | None = None, code: str | None = None
) -> list[PublicationReport]:
    """Send open dead letters of a site through the pipeline again: all, those of a code, or by id."""
    with _site_work(runtime, site):
        with runtime.connect() as connection:
            refuse_missing_site(connection, runtime.settings, site.name)
            letters = dead_letters.open_lines(connection, site=site.name, ids=ids, code=code)
        return _replay(runtime, site, _of_letters(runtime, letters))


def _unblocked(runtime: Runtime, site: SiteSettings) -> list[RawLine]:
    with runtime.connect() as connection:
        return dead_letters.open_lines(connection, site=site.name, causes_loaded=True)


def _of_letters(
    runtime: Runtime, letters: Sequence[RawLine], report: PublicationReport | None = None
) -> list[ReplayLine]:
    """The lines of dead letters: of long ones, that only landing holds whole, from there.

    Letters whose line no export holds any more are left out, with a warning in the report; without one, LandingError.
    """
    long = {letter.landed: letter for letter in letters if not letter.raw_is_complete}
    raws = {letter.id: letter.raw for letter in letters if letter.raw_is_complete}
    for site in {letter.site for letter in long.values()}:
        read = read_landed(runtime.landing, site, [line for line, letter in long.items() if letter.site == site])
        raws |= {long[line].id: found.raw for line, found in read.found.items()}
    missing = sorted(letter.id for letter in letters if letter.id not in raws)
    if missing:
        message = f"Dead letter {', '.join(map(str, missing))}: the line is too long for the database, and in no landed export."
        if report is None:
            raise LandingError(message, "Restore the landing folder, or name the other letters with --id.")
        report.warnings.append(message)
    return [ReplayLine(letter.resource_type, letter.as_of, raws[letter.id]) for letter in letters if letter.id in raws]


def _dependents(
    runtime: Runtime, site: SiteSettings, lines: Iterable[LandedLine], report: PublicationReport
) -> list[ReplayLine]:
    """Read lines from landing. Those that no export holds any more are issues of their resources, and a warning."""
    read = read_landed(runtime.landing, site.name, lines)
    if read.missing:
        with runtime.connect() as connection:
            note_missing(connection, report.export_id, read.missing)
        report.warnings.append(missing_sentence(len({line.surrogate_id for line in read.missing})))
    return [
        ReplayLine(line.resource_type, line.as_of, found.raw)
        for line, found in sorted(read.found.items(), key=itemgetter(0))
    ]


def _replay(runtime: Runtime, site: SiteSettings, lines: Sequence[ReplayLine]) -> list[PublicationReport]:
    """One export for each time from which lines come, oldest first."""
    by_time: dict[datetime, list[ReplayLine]] = defaultdict(list)
    for line in lines:
        by_time[line.as_of].append(line)
    reports = []
    for as_of, group in sorted(by_time.items()):
        with runtime.connect() as connection:
            export = _land(runtime, connection, site, as_of, group)
        reports.append(ingest(runtime, site, export, force=True))
    return reports


def _land(
    runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, as_of: datetime, lines: Sequence[ReplayLine]
) -> LandedExport:
    job = new_job(runtime, connection, site.name, ExportKind.REPLAY)
    draft = runtime.landing.begin(site.name, job.export_id)
    by_type: dict[str, list[ReplayLine]] = defaultdict(list)
    for line in lines:
        by_type[line.resource_type].append(line)
    files = []
    for number, (resource_type, group) in enumerate(sorted(by_type.items()), start=1):
        with draft.writer(number, resource_type) as writer:
            for line in group:
                writer.write(line.raw + b"\n")
            files.append(draft.keep(writer, number, resource_type))
    export = draft.finish(ExportKind.REPLAY, as_of, tuple(files))
    export_jobs.save_landed(connection, export, runtime.clock.now())
    connection.commit()
    return export
