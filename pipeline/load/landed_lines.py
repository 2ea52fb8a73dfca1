"""Landed lines by what the warehouse knows of them: where they lie, and what they say.

A line is read where its state says. Where that file is not there any more, or holds something else, the line is searched for by
its hash in the other landed exports of the site, the newest first. What no export holds is left to the caller: it is counted
(`note_missing`), and nothing stops for it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import psycopg
import xxhash

from pipeline.core.errors import LandingError
from pipeline.core.line_codes import IssueCode
from pipeline.landing.bundles import UNKNOWN
from pipeline.landing.chunks import plan_chunks, read_lines
from pipeline.landing.reading import is_landed, read_line, stored_file
from pipeline.landing.store import LandedFile, LandingStore
from pipeline.publication.landed_line import LANDED_LINE, LandedLine

__all__ = [
    "MISSING_LINE",
    "FoundLine",
    "LinesRead",
    "is_line",
    "line_hashes",
    "missing_lines",
    "missing_sentence",
    "note_missing",
    "read_landed",
    "search_landed",
    "with_binaries_found",
]

_log = logging.getLogger(__name__)

#: Code of `etl.row_issue`: what the resource depends on has changed, and its own line is in no landed export.
MISSING_LINE = IssueCode.LANDED_LINE_MISSING

_ADVICE = "Put the removed folder back, or export everything again: a line that comes again is mapped by that load."


@dataclass(frozen=True, slots=True)
class FoundLine:
    """A line as it is, and where it lies now."""

    raw: bytes
    file: Path
    offset: int


@dataclass
class LinesRead:
    """The lines that could be read, and those that are in no landed export."""

    found: dict[LandedLine, FoundLine] = field(default_factory=dict)
    missing: list[LandedLine] = field(default_factory=list)


def read_landed(landing: LandingStore, site: str, lines: Iterable[LandedLine]) -> LinesRead:
    """Read lines of a site, each where it lies or in the newest export that holds it. Raises nothing for what is missing."""
    result = LinesRead()
    by_export: dict[int, list[LandedLine]] = defaultdict(list)
    for line in lines:
        by_export[line.export_id].append(line)
    for export_id, group in sorted(by_export.items()):
        files = {file.number: file for file in _files(landing, site, export_id)}
        for line in sorted(group):
            found = _where_it_lies(files.get(line.file_number), line)
            if found is None:
                result.missing.append(line)
            else:
                result.found[line] = found
    if result.missing:
        elsewhere = dict(search_landed(landing, site, result.missing))
        result.found |= elsewhere
        result.missing = [line for line in result.missing if line not in elsewhere]
    return result


def _where_it_lies(file: LandedFile | None, line: LandedLine) -> FoundLine | None:
    if file is None:
        return None
    try:
        raw = read_line(file.path, line.byte_offset, line.byte_length)
    except LandingError as error:
        _log.warning("A landed line is searched for in other exports: %s", error.message)
        return None
    return FoundLine(raw, file.path, line.byte_offset) if is_line(raw, line) else None


def _files(landing: LandingStore, site: str, export_id: int) -> Sequence[LandedFile]:
    try:
        export = landing.read_manifest(site, export_id)
    except LandingError:
        return ()
    return (*export.files, *export.deleted)


def is_line(raw: bytes, line: LandedLine) -> bool:
    """Whether this is what the line was. That of a forgotten export has no hashes: whatever lies there is it."""
    return line.hashes in ((0, 0), line_hashes(raw))


def line_hashes(raw: bytes | memoryview) -> tuple[int, int]:
    """xxh3-128 of a line, as `etl.resource_state` holds it."""
    digest = xxhash.xxh3_128_digest(raw)
    high, low = (int.from_bytes(half, "little", signed=True) for half in (digest[:8], digest[8:]))
    return high, low


def search_landed(
    landing: LandingStore, site: str, lines: Sequence[LandedLine]
) -> Iterator[tuple[LandedLine, FoundLine]]:
    """Lines by their hashes in files of their types; each file on disk is read once, however many exports name it."""
    sought: dict[tuple[int, int], list[LandedLine]] = defaultdict(list)
    for line in lines:
        sought[line.hashes].append(line)
    types = {line.resource_type for line in lines} | {UNKNOWN}
    searched: set[tuple[int, int]] = set()
    for export in landing.finished(site):
        for file in export.files:
            if not sought:
                return
            if file.resource_type in types and _is_new(file.path, searched):
                for hashes, here in _matching(file, sought):
                    for line in sought.pop(hashes, ()):
                        yield line, here


def _is_new(path: Path, searched: set[tuple[int, int]]) -> bool:
    try:
        stat = stored_file(path).stat()
    except OSError:
        return False
    before = len(searched)
    searched.add((stat.st_dev, stat.st_ino))
    return len(searched) > before


def _matching(
    file: LandedFile, sought: dict[tuple[int, int], list[LandedLine]]
) -> Iterator[tuple[tuple[int, int], FoundLine]]:
    lengths = np.unique([line.byte_length for lines in sought.values() for line in lines])
    try:
        for chunk in plan_chunks(file.path):
            lines = read_lines(file.path, chunk)
            places = np.flatnonzero(np.isin(lines.lengths, lengths))
            for offset, raw in zip(lines.offsets[places].tolist(), lines.raws_at(places), strict=True):
                if (hashes := line_hashes(raw)) in sought:
                    yield hashes, FoundLine(raw, file.path, offset)
    except LandingError as error:
        _log.warning("%s", error.message)


def note_missing(connection: psycopg.Connection, export_id: int, lines: Iterable[LandedLine]) -> None:
    """Count resources whose lines are missing as issues, each once. Does not commit."""
    connection.execute(
        "INSERT INTO row_issue (export_id, surrogate_id, code) SELECT %(export)s, missing.surrogate_id, %(code)s"
        " FROM (SELECT DISTINCT unnest(%(ids)s::bigint[]) AS surrogate_id) AS missing WHERE NOT EXISTS (SELECT FROM row_issue"
        " AS known WHERE known.surrogate_id = missing.surrogate_id AND known.code = %(code)s)",
        {"export": export_id, "code": MISSING_LINE, "ids": [line.surrogate_id for line in lines]},
    )


def with_binaries_found(
    connection: psycopg.Connection, landing: LandingStore, site: str, export_id: int, facts: pl.DataFrame
) -> pl.DataFrame:
    """Facts (surrogate_id, name, value, owner_surrogate_id) whose `binary` says where the line of a Binary lies.

    Where that file is gone and another export holds the line, the fact follows, here and in `etl.reference_value`, and the
    documents are stale. A line that no export holds is an issue of the Binary. Commits.
    """
    root = landing.root / site
    binaries = facts.filter(pl.col("name") == "binary").with_columns(file=pl.col("value").str.split("|").list.first())
    gone = [name for name in binaries["file"].unique().to_list() if not is_landed(root / name)]
    lost = binaries.filter(pl.col("file").is_in(gone))
    rows = (
        connection.execute(
            f"SELECT {LANDED_LINE} FROM resource_state AS state JOIN site_resource_type AS kind USING (site_resource_type_id)"
            " WHERE state.surrogate_id = ANY(%s) AND kind.site = %s",
            (lost["owner_surrogate_id"].to_list(), site),
        ).fetchall()
        if len(lost)
        else []
    )
    if not rows:
        return facts
    read = read_landed(landing, site, [LandedLine(*row) for row in rows])
    note_missing(connection, export_id, read.missing)
    moved = {
        line.surrogate_id: f"{found.file.relative_to(root).as_posix()}|{found.offset}|{line.byte_length}"
        for line, found in read.found.items()
    }
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE reference_value SET value = %s WHERE name = 'binary' AND owner_surrogate_id = %s",
            [(value, owner) for owner, value in moved.items()],
        )
    connection.execute(
        "UPDATE reference SET state = 'stale' WHERE role = 'binary' AND state = 'resolved' AND to_surrogate_id = ANY(%s)",
        (list(moved),),
    )
    connection.commit()
    rows_moved = {"owner_surrogate_id": list(moved), "new": list(moved.values())}
    new = pl.DataFrame(rows_moved, schema={"owner_surrogate_id": pl.Int64, "new": pl.String})
    is_binary = pl.col("name") == "binary"
    return facts.join(new, on="owner_surrogate_id", how="left", maintain_order="left").select(
        pl.when(is_binary).then(pl.coalesce("new", "value")).otherwise("value").alias("value")
        if name == "value"
        else name
        for name in facts.columns
    )


def missing_lines(connection: psycopg.Connection, site: str | None = None) -> int:
    """Resources that could not be mapped again because their line is in no landed export."""
    row = connection.execute(
        "SELECT count(DISTINCT surrogate_id) FROM row_issue JOIN resource_state AS state USING (surrogate_id)"
        " JOIN site_resource_type AS kind USING (site_resource_type_id)"
        " WHERE row_issue.code = %(code)s AND (%(site)s::text IS NULL OR kind.site = %(site)s)",
        {"code": MISSING_LINE, "site": site},
    ).fetchone()
    return int(row[0]) if row else 0


def missing_sentence(count: int) -> str:
    """What happened and what to do, for people."""
    resources = "1 resource depends" if count == 1 else f"{count:,} resources depend"
    return (
        f"{resources} on what has changed, and no landed export holds their lines: their rows stay as they were."
        f" {_ADVICE}"
    )
