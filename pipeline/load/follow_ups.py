"""What follows from a load: dead letters whose cause is there now, and lines that depend on a resource that changed.

They are landed as an export of kind `replay`, so that every rule, account and lineage holds for them as for any other.
Its time is that of the export from which the lines come: a replay never overwrites something newer. Loading it is
`pipeline.load.load`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter

import psycopg

from omop_schema.exports import ExportKind, ExportState
from pipeline.core.errors import LandingError
from pipeline.core.settings import SiteSettings
from pipeline.extract.bulk import new_job
from pipeline.landing.store import LandedExport
from pipeline.load.landed_lines import line_hashes, missing_sentence, note_missing, read_landed
from pipeline.publication import dead_letters
from pipeline.publication.dead_letters import RawLine
from pipeline.publication.publish import LandedLine, PublicationReport
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import SiteWork, site_lock
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors

__all__ = ["FollowUps", "ReplayLine", "land_replay", "land_replays", "lines_of_dead_letters", "site_work"]


@dataclass(frozen=True)
class ReplayLine:
    """A landed line with its type, and the transactionTime of the export that it came in. `repairs`: the dead letter whose
    line a person repaired to this one."""

    resource_type: str
    as_of: datetime
    raw: bytes
    repairs: int | None = None


@contextmanager
def site_work(runtime: Runtime, site: SiteSettings) -> Iterator[None]:
    """The site's lock, lent to what is done inside. Replays that a process left, landed or half landed, are taken away:
    their lines are still open dead letters, or depend on what is marked as stale."""
    with server_errors(), runtime.connect() as connection, site_lock(connection, site.name, SiteWork.INGEST, lent=True):
        for state in (ExportState.REQUESTED, ExportState.LANDED):
            for job in export_jobs.jobs_of_kind(connection, site.name, ExportKind.REPLAY, state):
                runtime.landing.remove(site.name, job.export_id)
                export_jobs.mark_failed(connection, job.export_id, "The process ended before it was loaded.")
                connection.execute("DELETE FROM dead_letter_repair WHERE export_id = %s", (job.export_id,))
        connection.commit()
        yield


@dataclass
class FollowUps:
    """What is to be loaded after the exports of one load: each dead letter and each dependent line once.

    `_replayed`: ids of the dead letters that were sent through already; `_lines`: the dependents.
    """

    runtime: Runtime
    site: SiteSettings
    _replayed: set[int] = field(default_factory=set)
    _lines: set[LandedLine] = field(default_factory=set)

    def land(self, latest: Sequence[PublicationReport], first: PublicationReport) -> Iterator[LandedExport]:
        """What follows from the `latest` exports, landed one after the other. `first`: whose report gets the warnings.

        What came through may be what others waited for: an encounter that waited for its person dates a condition.
        """
        unblocked = [line for line in find_unblocked(self.runtime, self.site) if line.id not in self._replayed]
        self._replayed |= {line.id for line in unblocked}
        # Once each: a dependent whose line is older than what is known would stay one for ever.
        dependents = [line for report in latest for line in report.dependents if line not in self._lines]
        self._lines |= set(dependents)
        lines = read_dependents(self.runtime, self.site, dependents, first)
        lines += lines_of_dead_letters(self.runtime, unblocked, first)
        return land_replays(self.runtime, self.site, lines)


def find_unblocked(runtime: Runtime, site: SiteSettings) -> list[RawLine]:
    """Open dead letters whose cause is loaded by now."""
    with runtime.connect() as connection:
        return dead_letters.open_lines(connection, site=site.name, causes_loaded=True)


def lines_of_dead_letters(
    runtime: Runtime, rejected: Sequence[RawLine], report: PublicationReport | None = None
) -> list[ReplayLine]:
    """The lines of dead letters: of long ones, that only landing holds whole, from there.

    Dead letters whose line no export has any more are left out, with a warning in the report; without one, LandingError.
    """
    long = {line.landed: line for line in rejected if not line.raw_is_complete}
    raws = {line.id: line.raw for line in rejected if line.raw_is_complete}
    for site in {line.site for line in long.values()}:
        read = read_landed(runtime.landing, site, [place for place, line in long.items() if line.site == site])
        raws |= {long[place].id: found.raw for place, found in read.found.items()}
    missing = sorted(line.id for line in rejected if line.id not in raws)
    if missing:
        message = f"Dead letter {', '.join(map(str, missing))}: the line is too long for the database, and in no landed export."
        if report is None:
            raise LandingError(message, "Restore the landing folder, or name the other dead letters with --id.")
        report.warnings.append(message)
    return [ReplayLine(line.resource_type, line.as_of, raws[line.id]) for line in rejected if line.id in raws]


def read_dependents(
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


def land_replays(runtime: Runtime, site: SiteSettings, lines: Sequence[ReplayLine]) -> Iterator[LandedExport]:
    """One export for each time from which lines come, oldest first; each is landed when it is asked for."""
    by_time: dict[datetime, list[ReplayLine]] = defaultdict(list)
    for line in lines:
        by_time[line.as_of].append(line)
    for as_of, group in sorted(by_time.items()):
        with runtime.connect() as connection:
            export = land_replay(runtime, connection, site, as_of, group)
        yield export


def land_replay(
    runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, as_of: datetime, lines: Sequence[ReplayLine]
) -> LandedExport:
    """An export of kind `replay` with these lines, and of this time. Commits."""
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
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO dead_letter_repair (export_id, letter_id, raw_hash_high, raw_hash_low) VALUES (%s, %s, %s, %s)",
            [(job.export_id, line.repairs, *line_hashes(line.raw)) for line in lines if line.repairs is not None],
        )
    connection.commit()
    return export
