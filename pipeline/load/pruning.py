"""`epic-omop landing prune`: which old exports give up their files, and what of them stays (decision 0019).

Always kept: the lines of every resource's state, of open dead letters, and with them whatever waits for something else
(its state is there). Places of lines that move are changed in the database in one transaction an export.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import polars as pl
import psycopg

from omop_schema.exports import ENDED_STATES, ExportKind, ExportState, sql_values
from pipeline.core.errors import LandingError
from pipeline.core.settings import SiteSettings
from pipeline.landing.pruned import LinePosition, MovedLine, PlannedExport, copy_needed, plan_export, remove_rest
from pipeline.landing.usage import export_bytes
from pipeline.publication.dead_letters import FILE_NUMBER
from pipeline.warehouse.copying import temporary_table
from pipeline.warehouse.export_jobs import SiteWork, site_lock
from pipeline.warehouse.runtime import Runtime

__all__ = ["PrunedExport", "prunable", "prune"]

#: Exports that are counted by `landing_keep`, each kind and group by itself; others go with what is older than these.
_COUNTED = (ExportKind.BULK, ExportKind.FOLDER, ExportKind.CRAWL)


@dataclass(frozen=True)
class PrunedExport:
    """What was taken out of an export, or would be. Bytes are those on disk that no other export uses."""

    export_id: int
    files_removed: int
    lines_moved: int
    bytes_before: int
    bytes_after: int | None
    is_removed: bool
    #: Why it is not kept: `older`, or what ended it.
    reason: str
    #: Why nothing was done about it.
    problem: str = ""


def prunable(connection: psycopg.Connection, site: SiteSettings, now: datetime) -> dict[int, str]:
    """Export → why `landing_keep` does not keep it, oldest first.

    Published ones: the newest of each group and kind always stays. Ended ones, forgotten, given up and failed alike, are
    kept as long as a published one of their age: until then they can be loaded by hand.
    """
    rows = connection.execute(
        "SELECT export_id, kind, coalesce(group_id, ''), transaction_time, coalesce(landed_at, transaction_time) FROM export_job"
        f" WHERE site = %s AND state = '{ExportState.PUBLISHED}' ORDER BY transaction_time DESC, export_id DESC",
        (site.name,),
    ).fetchall()
    number, unit = site.landing_kept
    if unit == "all":
        return {}
    kept: dict[tuple[str, str], list[datetime]] = defaultdict(list)
    old, others = [], []
    for export_id, kind, group, _, landed_at in rows:
        if kind not in _COUNTED:
            others.append((export_id, landed_at))
            continue
        group_kept = kept[kind, group if kind == ExportKind.BULK else ""]
        recent = len(group_kept) < number if unit == "exports" else landed_at >= now - timedelta(days=number)
        if recent or not group_kept:
            group_kept.append(landed_at)
        else:
            old.append(export_id)
    times = [time for group_kept in kept.values() for time in group_kept]
    oldest = min(times, default=now)
    reasons = dict.fromkeys([*old, *(export_id for export_id, landed_at in others if landed_at < oldest)], "older")
    if unit == "days":
        oldest = now - timedelta(days=number)
    if unit == "days" or times:
        reasons |= _find_ended(connection, site.name, oldest)
    return dict(sorted(reasons.items()))


def _find_ended(connection: psycopg.Connection, site: str, instant: datetime) -> dict[int, str]:
    """Exports that came to no publication: what ended them, by a word and their error."""
    rows = connection.execute(
        f"SELECT export_id, state, error FROM export_job WHERE site = %s AND state IN {sql_values(ENDED_STATES)}"
        " AND coalesce(landed_at, requested_at) < %s",
        (site, instant),
    ).fetchall()
    return {export_id: f"{state}: {error or 'no reason is noted'}" for export_id, state, error in rows}


def prune(
    runtime: Runtime,
    site: SiteSettings,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[PrunedExport]:
    """Prune a site's landing as its `landing_keep` says. Safe to stop: the next run continues.

    An export that cannot be read is left as it is, with its problem. Raises SiteBusy while the site is loaded or hydrated,
    LandingError for a full disk.
    """
    found: list[PrunedExport] = []
    with runtime.connect() as connection, ExitStack() as locks:
        for work in (SiteWork.INGEST, SiteWork.HYDRATION):
            locks.enter_context(site_lock(connection, site.name, work))
        old = prunable(connection, site, runtime.clock.now())
        exports = [number for number in old if runtime.landing.exists(site.name, number)]
        if not dry_run:
            _note_gone(connection, set(old) - set(exports), runtime.clock.now())
        _gather_needed(connection, exports)
        for done, export_id in enumerate(exports):
            progress(done, len(exports))
            found += [
                replace(one, reason=old[export_id])
                for one in _prune_export(runtime, connection, site.name, export_id, dry_run=dry_run)
            ]
        connection.rollback()
    return found


def _note_gone(connection: psycopg.Connection, exports: Collection[int], now: datetime) -> None:
    """Exports whose folder somebody removed count as pruned."""
    connection.execute(
        "UPDATE export_job SET pruned_at = %s WHERE export_id = ANY(%s) AND pruned_at IS NULL"
        " AND landed_at IS NOT NULL",
        (now, list(exports)),
    )


def _gather_needed(connection: psycopg.Connection, exports: Sequence[int]) -> None:
    """Table pg_temp.needed_line: the lines of these exports that must stay; one look at the states for all of them."""
    connection.execute("DROP TABLE IF EXISTS pg_temp.needed_line")
    connection.execute(
        "CREATE TEMP TABLE needed_line AS SELECT export_id, file_number, byte_offset, byte_length FROM resource_state"
        " WHERE export_id = ANY(%(ids)s) UNION"
        f" SELECT export_id, coalesce({FILE_NUMBER.format('file')}, 0), byte_offset, byte_length"
        " FROM dead_letter WHERE state = 'open' AND export_id = ANY(%(ids)s)",
        {"ids": list(exports)},
    )
    connection.execute("CREATE INDEX ON pg_temp.needed_line (export_id)")
    connection.commit()


def _prune_export(
    runtime: Runtime, connection: psycopg.Connection, site: str, export_id: int, *, dry_run: bool
) -> Iterator[PrunedExport]:
    landing = runtime.landing
    folder = landing.folder(site, export_id)
    before = export_bytes(folder)
    needed: dict[int, list[LinePosition]] = defaultdict(list)
    for number, offset, length in connection.execute(
        "SELECT file_number, byte_offset, byte_length FROM pg_temp.needed_line WHERE export_id = %s", (export_id,)
    ):
        needed[number].append((offset, length))
    connection.commit()
    try:
        export = landing.open(site, export_id)
    except LandingError as error:
        if needed:
            yield PrunedExport(export_id, 0, 0, before, before, is_removed=False, reason="", problem=error.message)
            return
        export = landing.unfinished(site, export_id)  # damaged or half removed, and nothing of it is needed
    plan = plan_export(export, needed)
    if plan.is_needed and not plan.changes:
        return
    after = None
    if not dry_run:
        _apply(runtime, connection, plan)
        after = export_bytes(folder)
    files = len(plan.removed) + len(plan.compacted)
    yield PrunedExport(export_id, files, plan.kept_lines, before, after, is_removed=not plan.is_needed, reason="")


def _apply(runtime: Runtime, connection: psycopg.Connection, plan: PlannedExport) -> None:
    """Write, then move the places in the database, then remove."""
    now = runtime.clock.now()
    export = plan.export
    moved = copy_needed(plan, _next_number(connection, plan), now) if plan.compacted else []
    if moved:
        _move(connection, export.site, export.export_id, moved)
    connection.execute("UPDATE export_job SET pruned_at = %s WHERE export_id = %s", (now, export.export_id))
    connection.commit()
    remove_rest(plan, moved, now)


def _next_number(connection: psycopg.Connection, plan: PlannedExport) -> int:
    """No file of the export has, or had, this number or a higher one."""
    row = connection.execute(
        "SELECT coalesce(max(file_number), 0) FROM export_file WHERE export_id = %s", (plan.export.export_id,)
    ).fetchone()
    return 1 + max([row[0] if row else 0, *(file.number for file in (*plan.export.files, *plan.export.deleted))])


_MOVED = {
    "old_number": pl.Int32,
    "old_offset": pl.Int64,
    "file_number": pl.Int32,
    "file": pl.String,
    "byte_offset": pl.Int64,
    "line": pl.Int64,
    "old_binary": pl.String,
    "new_binary": pl.String,
}


def _move(connection: psycopg.Connection, site: str, export_id: int, moved: Sequence[MovedLine]) -> None:
    """Places of states, open dead letters and texts of Binaries. What is known of the lines themselves does not change."""
    root = moved[0].new_file.path.parent.parent
    rows = []
    for line in moved:
        old, new = (file.path.relative_to(root).as_posix() for file in (line.old_file, line.new_file))
        rows.append(
            (
                *(line.old_file.number, line.old_offset, line.new_file.number, new, line.offset, line.line),
                *(f"{export_id}/{old}|{line.old_offset}|", f"{export_id}/{new}|{line.offset}|"),
            )
        )
    connection.execute("SELECT set_config('epic_omop.keep_known_marks', 'on', true)")
    temporary_table(connection, "moved_line", pl.DataFrame(rows, schema=_MOVED, orient="row"))
    connection.execute("ANALYZE pg_temp.moved_line")
    here = "moved.old_offset = {0}.byte_offset AND {0}.export_id = %(export)s"
    parameters = {"export": export_id, "site": site}
    connection.execute(
        "UPDATE reference_value AS fact SET value = moved.new_binary || state.byte_length FROM pg_temp.moved_line AS moved"
        f" JOIN resource_state AS state ON state.file_number = moved.old_number AND {here.format('state')}"
        " WHERE fact.surrogate_id = state.surrogate_id AND fact.name = 'binary'"
        " AND fact.value = moved.old_binary || state.byte_length",
        parameters,
    )
    connection.execute(
        "UPDATE resource_state AS state SET (file_number, line, byte_offset)"
        " = ROW(moved.file_number, moved.line, moved.byte_offset) FROM pg_temp.moved_line AS moved"
        f" WHERE state.file_number = moved.old_number AND {here.format('state')}",
        parameters,
    )
    connection.execute(
        "UPDATE dead_letter AS letter SET (file, line, byte_offset) = ROW(moved.file, moved.line, moved.byte_offset)"
        f" FROM pg_temp.moved_line AS moved WHERE {here.format('letter')} AND letter.state = 'open' AND letter.site = %(site)s"
        f" AND {FILE_NUMBER.format('letter.file')} = moved.old_number",
        parameters,
    )
    connection.execute("DROP TABLE pg_temp.moved_line")
