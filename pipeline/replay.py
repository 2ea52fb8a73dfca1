"""Lines that go through the pipeline once more: dead letters, and what depends on a resource that changed.

They are landed as an export of kind `replay`, so that every rule, account and lineage holds for them as for any other.
Its time is that of the export from which the lines come: a replay never overwrites something newer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter

import psycopg

from pipeline.errors import LandingError
from pipeline.exports import new_job
from pipeline.ingest import IngestProgress, ingest
from pipeline.landed_lines import missing_sentence, note_missing, read_landed
from pipeline.landing.store import LandedExport
from pipeline.runtime import Runtime
from pipeline.settings import SiteSettings
from pipeline.warehouse import dead_letters, export_jobs
from pipeline.warehouse.dead_letters import RawLine
from pipeline.warehouse.publish import LandedLine, PublicationReport

__all__ = ["ingest_with_follow_ups", "replay_dead_letters"]


@dataclass(frozen=True)
class _Line:
    resource_type: str
    as_of: datetime
    raw: bytes


def ingest_with_follow_ups(
    runtime: Runtime,
    site: SiteSettings,
    export: LandedExport,
    *,
    force: bool = False,
    confirmed: bool = False,
    progress: IngestProgress | None = None,
) -> list[PublicationReport]:
    """Ingest an export, then what waited for it: dead letters whose cause is loaded now, and dependents.

    The first report is the export's own. Errors are those of `ingest`.
    """
    reports = [ingest(runtime, site, export, force=force, confirmed=confirmed, progress=progress)]
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
    with runtime.connect() as connection:
        letters = dead_letters.open_lines(connection, site=site.name, ids=ids, code=code)
    return _replay(runtime, site, _of_letters(runtime, letters))


def _unblocked(runtime: Runtime, site: SiteSettings) -> list[RawLine]:
    with runtime.connect() as connection:
        return dead_letters.open_lines(connection, site=site.name, causes_loaded=True)


def _of_letters(runtime: Runtime, letters: Sequence[RawLine], report: PublicationReport | None = None) -> list[_Line]:
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
    return [_Line(letter.resource_type, letter.as_of, raws[letter.id]) for letter in letters if letter.id in raws]


def _dependents(
    runtime: Runtime, site: SiteSettings, lines: Iterable[LandedLine], report: PublicationReport
) -> list[_Line]:
    """Read lines from landing. Those that no export holds any more are issues of their resources, and a warning."""
    read = read_landed(runtime.landing, site.name, lines)
    if read.missing:
        with runtime.connect() as connection:
            note_missing(connection, report.export_id, read.missing)
        report.warnings.append(missing_sentence(len({line.surrogate_id for line in read.missing})))
    return [
        _Line(line.resource_type, line.as_of, found.raw)
        for line, found in sorted(read.found.items(), key=itemgetter(0))
    ]


def _replay(runtime: Runtime, site: SiteSettings, lines: Sequence[_Line]) -> list[PublicationReport]:
    """One export for each time from which lines come, oldest first."""
    by_time: dict[datetime, list[_Line]] = defaultdict(list)
    for line in lines:
        by_time[line.as_of].append(line)
    reports = []
    for as_of, group in sorted(by_time.items()):
        with runtime.connect() as connection:
            export = _land(runtime, connection, site, as_of, group)
        reports.append(ingest(runtime, site, export, force=True))
    return reports


def _land(
    runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, as_of: datetime, lines: Sequence[_Line]
) -> LandedExport:
    job = new_job(runtime, connection, site.name, "replay")
    draft = runtime.landing.begin(site.name, job.export_id)
    by_type: dict[str, list[_Line]] = defaultdict(list)
    for line in lines:
        by_type[line.resource_type].append(line)
    files = []
    for number, (resource_type, group) in enumerate(sorted(by_type.items()), start=1):
        with draft.writer(number, resource_type) as writer:
            for line in group:
                writer.write(line.raw + b"\n")
            files.append(draft.keep(writer, number, resource_type))
    export = draft.finish("replay", as_of, tuple(files))
    export_jobs.save_landed(connection, export, runtime.clock.now())
    connection.commit()
    return export
