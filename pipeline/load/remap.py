"""Mapping a site again from landing, after its settings or the vocabulary changed: no new export, no line that is
older than what is known.

The current line of each resource goes through the normal load in batches, as of the time of its own export; each batch
is published before the next is read. What is mapped already, by the remap or by a load meanwhile, is known from its
state, so that an interrupted remap continues where it stood. Loads of the site may run at the same time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.core.settings import SiteSettings
from pipeline.load.current_lines import MAPPABLE, CurrentLines
from pipeline.load.fingerprints import SiteRules, site_rules
from pipeline.load.follow_ups import ReplayLine
from pipeline.load.landed_lines import FoundLine, is_line, search_landed
from pipeline.load.old_settings import SiteFingerprints, is_old
from pipeline.load.plan import FACT_ORDER
from pipeline.load.replay import publish_nothing, replay_lines
from pipeline.load.vocabulary_changes import VocabularyChanges, follow_vocabulary
from pipeline.publication.derived import rules_are_old
from pipeline.publication.landed_line import LANDED_LINE, LandedLine
from pipeline.publication.steps.cdm_source import RELEASE_LENGTH
from pipeline.publication.steps.derived_rows import derived_options
from pipeline.warehouse.configured_sites import refuse_missing_site
from pipeline.warehouse.export_jobs import SiteWork, next_export_id, site_lock
from pipeline.warehouse.runtime import Runtime

__all__ = ["RemapPlan", "RemapReport", "remap", "remap_plan"]

#: (resources done, resources in all).
RemapProgress = Callable[[int, int], None]

#: A batch: whichever is reached first. Its lines are in memory.
_BATCH_BYTES = 64 * 1024 * 1024
_BATCH_LINES = 50_000

#: So many lines that are not where they lay are searched for together: a search reads all that landing holds.
_SEARCHED_LINES = 500_000


@dataclass
class RemapReport:
    """The result of a remap; counts are of resources by type."""

    mapped: Counter[str] = field(default_factory=Counter)
    #: Their line is in landing no more: they stay as they were until an export brings them.
    not_in_landing: Counter[str] = field(default_factory=Counter)
    export_ids: list[int] = field(default_factory=list)
    #: What the comparison with the vocabulary found; None: it is the same.
    vocabulary: VocabularyChanges | None = None
    #: Whether an interrupted remap was continued.
    resumed: bool = False


@dataclass(frozen=True)
class RemapPlan:
    """What a remap of a site that begins or continues now would do."""

    #: resource type → resources that are mapped
    resources: Mapping[str, int]
    #: CDM table → rows that these resources have now
    rows: Mapping[str, int]
    #: what the vocabulary of today says otherwise than that of the last comparison; None: it is the same
    vocabulary: VocabularyChanges | None = None
    #: whether derived rows and `cdm_source` are computed again although no resource is mapped
    others_are_old: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.resources or self.others_are_old)


def remap_plan(runtime: Runtime, site: SiteSettings, *, everything: bool = False) -> RemapPlan:
    """What a remap would map. Changes nothing: what the comparison with the vocabulary marks is rolled back.

    Raises SiteBusy while a load of the site runs, ConfigurationError, MappingError, VocabularyError.
    """
    work = _Work(runtime, site, everything)
    with runtime.connect() as connection, site_lock(connection, site.name, SiteWork.INGEST):
        refuse_missing_site(connection, runtime.settings, site.name)
        found = follow_vocabulary(runtime, connection, site, work.rules, keep=False)
        condition, parameters = work.condition(work.first_export_id(connection))
        resources = connection.execute(
            f"SELECT kind.resource_type, count(*) FROM {_STATES} WHERE {condition} GROUP BY 1 ORDER BY 1", parameters
        ).fetchall()
        rows = _rows_by_table(connection, condition, parameters) if resources else {}
        others = _others_are_old(runtime, connection, site, work.rules)
        connection.rollback()
    return RemapPlan(dict(resources), rows, found, others)


def _rows_by_table(connection: psycopg.Connection, condition: str, parameters: Sequence[object]) -> dict[str, int]:
    """CDM table → rows of the resources for which the condition on `_STATES` holds."""
    connection.execute(
        f"CREATE TEMP TABLE to_map ON COMMIT DROP AS SELECT state.surrogate_id FROM {_STATES} WHERE {condition}",
        parameters,
    )
    connection.execute("ANALYZE pg_temp.to_map")
    counts = " UNION ALL ".join(
        f"SELECT '{table}', count(*) FROM {lineage_table_name(table)} JOIN pg_temp.to_map USING (surrogate_id)"
        for table in LINEAGE_TABLES
    )
    return {table: count for table, count in connection.execute(counts).fetchall() if count}


def remap(
    runtime: Runtime, site: SiteSettings, *, everything: bool = False, progress: RemapProgress | None = None
) -> RemapReport:
    """Map the current lines of a site again that are under old settings, or whose codes the vocabulary says otherwise; with
    `everything` all of them.

    Interrupted, the same call continues. Raises SiteBusy while another remap of the site runs, ConfigurationError for a
    site that is missing from sites.yaml, and what `load` raises; what was published before stays.
    """
    report = RemapReport()
    work = _Work(runtime, site, everything)
    with runtime.connect() as connection, site_lock(connection, site.name, SiteWork.REMAP):
        refuse_missing_site(connection, runtime.settings, site.name)
        with runtime.connect() as other, site_lock(other, site.name, SiteWork.INGEST):
            report.vocabulary = follow_vocabulary(runtime, other, site, work.rules)
        first, report.resumed = work.begin(connection)
        connection.commit()
        total = work.count(connection, first)
        done = 0
        elsewhere: list[LandedLine] = []
        for batch in work.batches(connection, first):
            lines, not_there = _read(runtime, connection, site, first, batch)
            _map(runtime, site, lines, report)
            elsewhere += not_there
            if len(elsewhere) >= _SEARCHED_LINES:
                _map_from_other_exports(runtime, connection, site, first, elsewhere, report)
                elsewhere = []
            done += len(batch)
            if progress:
                progress(done, total)
        _map_from_other_exports(runtime, connection, site, first, elsewhere, report)
        if not report.export_ids and _others_are_old(runtime, connection, site, work.rules):
            report.export_ids += [item.export_id for item in publish_nothing(runtime, site)]
        work.finish(connection)
        connection.commit()
    return report


def _others_are_old(runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, rules: SiteRules) -> bool:
    """Whether derived rows were computed by other rules, or `cdm_source` says another release."""
    settings = runtime.settings
    options = derived_options(site, settings)
    if rules_are_old(connection, cdm=settings.cdm_schema, etl=settings.etl_schema, options=options):
        return True
    rows = connection.execute("SELECT vocabulary_version FROM cdm_source").fetchall()
    return any(said != rules.index.release[:RELEASE_LENGTH] for (said,) in rows)


_STATES = "resource_state AS state JOIN site_resource_type AS kind USING (site_resource_type_id)"


class _Work:
    """What there is to do, by the settings of today."""

    def __init__(self, runtime: Runtime, site: SiteSettings, everything: bool) -> None:
        self._runtime, self._site, self._everything = runtime, site, everything
        self.rules = rules = site_rules(runtime, site)
        self._mappings = rules.mappings
        self._fingerprints = SiteFingerprints(rules.fingerprints, frozenset(rules.mappings.resources))
        self._mark = _mark(self._fingerprints, everything)

    def first_export_id(self, connection: psycopg.Connection) -> int | None:
        """Of the interrupted remap with the same settings; None: there is none."""
        row = connection.execute(
            "SELECT first_export_id FROM remap WHERE site = %s AND mark = %s AND finished_at IS NULL",
            (self._site.name, self._mark),
        ).fetchone()
        return row[0] if row else None

    def begin(self, connection: psycopg.Connection) -> tuple[int, bool]:
        """(first export id of the remap, whether it is continued). Does not commit."""
        first = self.first_export_id(connection)
        if first is not None:
            return first, True
        first = next_export_id(connection)
        connection.execute(
            "INSERT INTO remap (site, first_export_id, mark, started_at) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (site) DO UPDATE SET (first_export_id, mark, started_at, finished_at)"
            " = ROW(excluded.first_export_id, excluded.mark, excluded.started_at, NULL)",
            (self._site.name, first, self._mark, self._runtime.clock.now()),
        )
        return first, False

    def finish(self, connection: psycopg.Connection) -> None:
        connection.execute(
            "UPDATE remap SET finished_at = %s WHERE site = %s", (self._runtime.clock.now(), self._site.name)
        )

    def condition(self, first: int | None) -> tuple[str, Sequence[object]]:
        """On `_STATES`: what is to be mapped. Lines of types without a mapping are excluded under any settings."""
        old, parameters = is_old(self._fingerprints)
        selected, mapped = old, list[object]()
        if self._everything:
            selected, mapped = f"({old} OR kind.resource_type = ANY(%s))", [sorted(self._fingerprints.mapped_types)]
        return (
            f"kind.site = %s AND {MAPPABLE} AND (%s::bigint IS NULL OR state.export_id < %s) AND {selected}",
            (self._site.name, first, first, *parameters, *mapped),
        )

    def count(self, connection: psycopg.Connection, first: int) -> int:
        """Resources that are to be mapped."""
        condition, parameters = self.condition(first)
        row = connection.execute(f"SELECT count(*) FROM {_STATES} WHERE {condition}", parameters).fetchone()
        return int(row[0]) if row else 0

    def batches(self, connection: psycopg.Connection, first: int) -> Iterator[list[int]]:
        """Surrogate ids, first of the types that leave facts for others, in the order of landing. The server keeps the
        list: loads commit meanwhile."""
        condition, parameters = self.condition(first)
        early = [name for name, mapping in self._mappings.resources.items() if mapping.order < FACT_ORDER]
        with _open_cursor(connection) as cursor:
            cursor.execute(
                f"SELECT state.surrogate_id, state.byte_length FROM {_STATES} WHERE {condition}"
                " ORDER BY kind.resource_type <> ALL(%s), state.as_of, state.export_id, state.file_number,"
                " state.byte_offset",
                (*parameters, early),
            )
            connection.commit()
            batch: list[int] = []
            size = 0
            for surrogate_id, length in cursor:
                batch.append(surrogate_id)
                size += length
                if size >= _BATCH_BYTES or len(batch) >= _BATCH_LINES:
                    yield batch
                    batch, size = [], 0
            if batch:
                yield batch


@contextmanager
def _open_cursor(connection: psycopg.Connection) -> Iterator[psycopg.ServerCursor]:
    with connection.cursor("remap_resources", withhold=True) as cursor:
        cursor.itersize = 10_000
        yield cursor


def _map(runtime: Runtime, site: SiteSettings, lines: Sequence[ReplayLine], report: RemapReport) -> None:
    report.export_ids += [item.export_id for item in replay_lines(runtime, site, lines)]
    report.mapped.update(line.resource_type for line in lines)


def _read(
    runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, first: int, batch: Sequence[int]
) -> tuple[list[ReplayLine], list[LandedLine]]:
    """The batch's lines as they stand now, without what was mapped meanwhile, and those that are not where they lay."""
    found, not_there = [], []
    with CurrentLines(runtime.landing, site.name) as landed:
        for line in _current(connection, first, batch):
            raw = landed.read(line.export_id, line.file_number, line.byte_offset, line.byte_length)
            if raw is None or not is_line(raw, line):
                not_there.append(line)
            else:
                found.append(ReplayLine(line.resource_type, line.as_of, raw))
    return found, not_there


def _current(connection: psycopg.Connection, first: int, surrogate_ids: Sequence[int]) -> list[LandedLine]:
    """The lines of these resources, in the order of landing, without what was mapped meanwhile. Commits."""
    rows = connection.execute(
        f"SELECT {LANDED_LINE} FROM {_STATES} WHERE state.surrogate_id = ANY(%s) AND state.export_id < %s AND {MAPPABLE}"
        " ORDER BY state.export_id, state.file_number, state.byte_offset",
        (list(surrogate_ids), first),
    ).fetchall()
    connection.commit()
    return [LandedLine(*row) for row in rows]


def _map_from_other_exports(
    runtime: Runtime,
    connection: psycopg.Connection,
    site: SiteSettings,
    first: int,
    lines: Sequence[LandedLine],
    report: RemapReport,
) -> None:
    """Lines whose export is gone or damaged, from the newest other one that has them; what none has is counted."""
    missing = {line.surrogate_id: line for line in lines}
    search = search_landed(runtime.landing, site.name, lines) if lines else iter(())
    for found in _batches_of_found(search):
        now = {
            line.surrogate_id: line.hashes
            for line in _current(connection, first, [line.surrogate_id for line, _ in found])
        }
        same = [(line, here) for line, here in found if now.get(line.surrogate_id) == line.hashes]
        _map(runtime, site, [ReplayLine(line.resource_type, line.as_of, here.raw) for line, here in same], report)
        for line, _ in found:
            del missing[line.surrogate_id]
    report.not_in_landing.update(line.resource_type for line in missing.values())


def _batches_of_found(found: Iterable[tuple[LandedLine, FoundLine]]) -> Iterator[list[tuple[LandedLine, FoundLine]]]:
    batch: list[tuple[LandedLine, FoundLine]] = []
    size = 0
    for line, here in found:
        batch.append((line, here))
        size += line.byte_length
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_LINES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _mark(fingerprints: SiteFingerprints, everything: bool) -> str:
    content = f"{not everything} {sorted(fingerprints.by_type.items())}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]
