"""Dead letters: what could not be loaded, why, and the line itself, so that it can be shown and replayed.

Has patient data (the raw line); only the commands that a user runs show it. Replaying is in `pipeline.load.replay`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import polars as pl
import psycopg
from psycopg.rows import class_row

from pipeline.core.line_codes import RejectionCode
from pipeline.fhir.identity import parse_reference
from pipeline.landing.reading import read_line
from pipeline.landing.store import LandedExport, LandedFile
from pipeline.publication.landed_line import LandedLine
from pipeline.publication.sql import Database
from pipeline.publication.tables import columns_set
from pipeline.staging.outcomes import LineOutcome
from pipeline.staging.parts import StagedExport
from pipeline.staging.schemas import OUTCOME, UNCHANGED

__all__ = [
    "FILE_NUMBER",
    "DeadLetter",
    "RawLine",
    "close",
    "get_dead_letter",
    "list_dead_letters",
    "open_lines",
    "record",
]

#: A longer line is kept in part; the rest is found in landing by file, offset and length.
RAW_LIMIT = 16 * 1024 * 1024
RAW_EXCERPT = 64 * 1024
#: SQL: the number of the file that a column names, such as files/Observation.00002.ndjson.
FILE_NUMBER = "substring({} FROM '[.]([0-9]+)[.]ndjson$')::integer"


@dataclass(frozen=True)
class DeadLetter:
    """One open dead letter as the view `dead_letter_open` shows it."""

    id: int
    site: str
    resource_type: str
    resource_id: str | None
    file: str
    line: int
    stage: str
    code: str
    path: str | None
    reason: str
    caused_by: str | None


@dataclass(frozen=True)
class RawLine:
    """The line of a dead letter, and where it was landed."""

    id: int
    site: str
    resource_type: str
    export_id: int
    file: str
    byte_offset: int
    byte_length: int
    raw: bytes
    raw_is_complete: bool
    as_of: datetime
    file_number: int
    raw_hash_high: int
    raw_hash_low: int

    @property
    def landed(self) -> LandedLine:
        """Where the whole line lies."""
        return LandedLine(
            self.export_id,
            self.file_number,
            self.byte_offset,
            self.byte_length,
            0,
            self.resource_type,
            self.raw_hash_high,
            self.raw_hash_low,
            self.as_of,
        )


#: Columns that a dead letter takes over when its line is rejected again; first_seen and raw stay.
_REJECTED_AGAIN = (
    *("export_id", "file", "line", "byte_offset", "byte_length", "stage", "code", "path", "reason"),
    *("caused_by", "caused_by_surrogate_id", "last_seen"),
)
#: What a repaired line that is rejected as well changes of its letter besides.
_REPAIRED_AGAIN = (
    *_REJECTED_AGAIN,
    *("resource_type", "raw", "raw_is_complete", "raw_hash_high", "raw_hash_low"),
)
_OPEN = "id, site, resource_type, resource_id, file, line, stage, code, path, reason, caused_by"


def list_dead_letters(
    connection: psycopg.Connection, *, site: str | None = None, code: str | None = None, limit: int = 50
) -> list[DeadLetter]:
    """Open dead letters, newest first."""
    with connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(
            f"SELECT {_OPEN} FROM dead_letter_open WHERE (%(site)s::text IS NULL OR site = %(site)s)"
            " AND (%(code)s::text IS NULL OR code = %(code)s) ORDER BY id DESC LIMIT %(limit)s",
            {"site": site, "code": code, "limit": limit},
        ).fetchall()


def get_dead_letter(connection: psycopg.Connection, letter_id: int) -> tuple[DeadLetter, RawLine] | None:
    """One dead letter, open or closed, with its line."""
    with connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        found = cursor.execute(f"SELECT {_OPEN} FROM dead_letter WHERE id = %s", (letter_id,)).fetchone()
    if found is None:
        return None
    return found, next(iter(_raw_lines(connection, "letter.id = %s", (letter_id,))))


def open_lines(
    connection: psycopg.Connection,
    *,
    site: str,
    ids: Sequence[int] | None = None,
    code: str | None = None,
    export_id: int | None = None,
    causes_loaded: bool = False,
) -> list[RawLine]:
    """Lines of a site's open dead letters, oldest first. `export_id`: only those that this export brought last.

    With `causes_loaded` only those whose cause is loaded by now, such as a person who has arrived.
    """
    conditions, parameters = ["letter.state = 'open'", "letter.site = %s"], [site]
    if ids is not None:
        conditions.append("letter.id = ANY(%s)")
        parameters.append(list(ids))  # type: ignore[arg-type] # parameters are of any type
    if code is not None:
        conditions.append("letter.code = %s")
        parameters.append(code)
    if export_id is not None:
        conditions.append("letter.export_id = %s")
        parameters.append(export_id)  # type: ignore[arg-type] # parameters are of any type
    if causes_loaded:
        conditions.append(
            "EXISTS (SELECT FROM resource_state AS cause WHERE cause.surrogate_id = letter.caused_by_surrogate_id"
            " AND cause.outcome = 'loaded')"
        )
    return list(_raw_lines(connection, " AND ".join(conditions), parameters))


def _raw_lines(connection: psycopg.Connection, condition: str, parameters: Sequence[Any]) -> Iterable[RawLine]:
    with connection.cursor(row_factory=class_row(RawLine)) as cursor:
        yield from cursor.execute(
            "SELECT letter.id, letter.site, letter.resource_type, letter.export_id, letter.file, letter.byte_offset,"
            " letter.byte_length, letter.raw, letter.raw_is_complete, job.transaction_time AS as_of,"
            " letter.raw_hash_high, letter.raw_hash_low,"
            f" coalesce({FILE_NUMBER.format('letter.file')}, 0) AS file_number"
            f" FROM dead_letter AS letter JOIN export_job AS job USING (export_id) WHERE {condition} ORDER BY letter.id",
            parameters,
        )


#: Columns of a new dead letter, in the order of `_new_rows`.
_COLUMNS = (
    *("site", "resource_type", "resource_id", "surrogate_id", "export_id", "file", "line", "byte_offset"),
    *("byte_length", "stage", "code", "path", "reason", "caused_by", "caused_by_surrogate_id", "raw"),
    *("raw_is_complete", "raw_hash_high", "raw_hash_low", "state", "first_seen", "last_seen", "open_since"),
)


def record(db: Database, export: LandedExport, rejections: pl.DataFrame, now: datetime) -> None:
    """Write rejections (REJECTION_SCHEMA): a line that was rejected before keeps its dead letter, and is not written twice."""
    if rejections.is_empty():
        return
    db.execute("new_dead_letters")
    columns = ", ".join(_COLUMNS)
    with db.connection.cursor() as cursor, cursor.copy(f"COPY pg_temp.new_dead_letter ({columns}) FROM STDIN") as copy:
        for row in _new_rows(export, rejections, now):
            copy.write_row(row)
    own = {"now": now, "export_id": export.export_id, "transaction_time": export.transaction_time}
    db.execute("keep_repaired_letters", own, set_columns=columns_set(_REPAIRED_AGAIN, "again"))
    db.execute("keep_open_since")
    db.execute("supersede_dead_letters", own)
    db.execute("save_dead_letters", columns=columns, set_columns=columns_set(_REJECTED_AGAIN))


def _new_rows(export: LandedExport, rejections: pl.DataFrame, now: datetime) -> Iterator[tuple[Any, ...]]:
    """Each rejection as the values of _COLUMNS, with its raw line."""
    files = {file.number: file for file in export.files}
    for rejection in rejections.iter_rows(named=True):
        file = files[rejection["file_number"]]
        raw, complete = _raw(export, file, rejection)
        rejection |= {
            "site": export.site,
            "export_id": export.export_id,
            "file": str(file.path.relative_to(export.folder) if file.path.is_absolute() else file.path),
            "caused_by": _cause(raw, rejection["code"]) if rejection["cause"] is not None else None,
            "caused_by_surrogate_id": rejection["cause"],
            "raw": raw,
            "raw_is_complete": complete,
            "state": "open",
            "first_seen": now,
            "last_seen": now,
            "open_since": now,
        }
        yield tuple(rejection[name] for name in _COLUMNS)


def close(db: Database, export: LandedExport, staged: StagedExport, not_loaded: pl.DataFrame, now: datetime) -> None:
    """Close open dead letters of earlier exports whose resource or line was accepted in this one.

    That is: the resource is loaded or excluded now, or has come in its loaded form again, or the very line has, or the line
    that a person repaired. A letter of a newer export stays: an earlier export says nothing about it.
    """
    own = {"site": export.site, "export_id": export.export_id, "transaction_time": export.transaction_time}
    waiting = db.frame("earlier_open_dead_letters", _WAITING, own)
    repairs = db.frame("repairs_of_export", _REPAIR, own)
    if waiting.is_empty() and repairs.is_empty():
        return
    accepted = staged.scan(OUTCOME).filter(pl.col("outcome") != LineOutcome.REJECTED)
    accepted = accepted.join(not_loaded.lazy(), on=["surrogate_id", "file_number", "line"], how="anti")
    resources = pl.concat([accepted.select("surrogate_id"), staged.scan(UNCHANGED).select("surrogate_id")])
    hashes = ["raw_hash_high", "raw_hash_low"]
    closed = pl.concat(
        [
            waiting.lazy().join(resources, on="surrogate_id", how="semi").select("id"),
            waiting.lazy().join(accepted.select(hashes), on=hashes, how="semi").select("id"),
        ]
    ).collect()
    repaired = repairs.lazy().join(accepted.select(hashes), on=hashes, how="semi").select("id").collect()
    ids = pl.concat([closed, repaired])["id"].unique().to_list()
    own |= {"now": now, "ids": ids, "repaired": repaired["id"].to_list()}
    db.execute("close_dead_letters", own)
    if not repairs.is_empty():
        db.execute("forget_repairs", own)


_REPAIR = {"id": pl.Int64, "raw_hash_high": pl.Int64, "raw_hash_low": pl.Int64}
_WAITING = {"id": pl.Int64, "surrogate_id": pl.Int64, "raw_hash_high": pl.Int64, "raw_hash_low": pl.Int64}


def _raw(export: LandedExport, file: LandedFile, rejection: dict[str, Any]) -> tuple[bytes, bool]:
    path = file.path if file.path.is_absolute() else export.folder / file.path
    complete = rejection["byte_length"] <= RAW_LIMIT
    return read_line(path, rejection["byte_offset"], rejection["byte_length"] if complete else RAW_EXCERPT), complete


def _cause(raw: bytes, code: str) -> str | None:
    """`Type/id` of the resource that a line waits for: its person, else the encounter or the birth that would date it."""
    resource = orjson.loads(raw)
    elements = [("subject", "Patient"), ("patient", "Patient"), ("beneficiary", "Patient")]
    if code != RejectionCode.PERSON_UNKNOWN:
        elements = [("encounter", "Encounter"), ("context", "Encounter"), *elements]
    for element, kind in elements:
        reference = (resource.get(element) or {}).get("reference")
        if reference and (parsed := parse_reference(reference, kind)):
            return "/".join(parsed)
    return None
