"""Rows of `etl.local_map`: read as they hold now, and changed by new versions, so that every answer stays to be seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime

import psycopg
from psycopg import sql

__all__ = [
    "Answer",
    "LocalRow",
    "MapSchemas",
    "Source",
    "current_rows",
    "former_rows",
    "has_local_map",
    "lock_local_map",
    "replace_answers",
]

#: site (None: of all), system, code, text: one of code and text is None.
Source = tuple[str | None, str, str | None, str | None]

#: Advisory lock of whoever changes local maps ("lmap" in ASCII).
_LOCK = 0x6C6D6170


@dataclass(frozen=True)
class MapSchemas:
    """Where the vocabulary and the local maps are."""

    vocab: str
    etl: str

    def of_vocabulary(self, table: str) -> sql.Identifier:
        return sql.Identifier(self.vocab, table)

    @property
    def local_map(self) -> sql.Identifier:
        return sql.Identifier(self.etl, "local_map")


@dataclass(frozen=True)
class Answer:
    """What somebody decided about a source; one of several where it has several targets. Columns of `etl.local_map`."""

    site: str | None
    source_system: str
    source_code: str | None
    source_text: str | None
    target_concept_id: int
    status: str = "approved"
    kind: str = "to"
    source_description: str | None = None
    source_concept_id: int | None = None
    approved_concept_id: int | None = None
    equivalence: str | None = None
    mapping_type: str | None = None
    reviewer: str | None = None
    reviewed_at: datetime | None = None
    comment: str | None = None
    target_problem: str | None = None
    origin: str = "import"

    @property
    def source(self) -> Source:
        return self.site, self.source_system, self.source_code, self.source_text

    @property
    def chosen_concept_id(self) -> int:
        """What the reviewer chose, whatever a release made of it."""
        return self.target_concept_id if self.approved_concept_id is None else self.approved_concept_id

    @property
    def is_no_map(self) -> bool:
        """Reviewed, and there is no concept for it."""
        return self.status == "approved" and self.target_concept_id == 0


@dataclass(frozen=True)
class LocalRow:
    """A row of the table."""

    id: int
    version: int
    is_written: bool
    answer: Answer


_COLUMNS = tuple(field.name for field in fields(Answer))


def has_local_map(connection: psycopg.Connection, schemas: MapSchemas) -> bool:
    """Whether the database has the table: it comes with an upgrade."""
    name = schemas.local_map.as_string(connection)
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone()
    return bool(row and row[0])


def current_rows(connection: psycopg.Connection, schemas: MapSchemas) -> list[LocalRow]:
    """The rows that hold, oldest first."""
    return _rows(connection, schemas, "valid_until IS NULL")


def former_rows(connection: psycopg.Connection, schemas: MapSchemas) -> list[LocalRow]:
    """Rows that no longer hold and still stand in source_to_concept_map."""
    return _rows(connection, schemas, "valid_until IS NOT NULL AND is_written")


def _rows(connection: psycopg.Connection, schemas: MapSchemas, condition: str) -> list[LocalRow]:
    query = sql.SQL("SELECT id, version, is_written, {} FROM {} WHERE {} ORDER BY id").format(
        sql.SQL(", ").join(map(sql.Identifier, _COLUMNS)), schemas.local_map, sql.SQL(condition)
    )
    return [LocalRow(row[0], row[1], row[2], Answer(*row[3:])) for row in connection.execute(query)]


def lock_local_map(connection: psycopg.Connection) -> None:
    """Until the transaction ends nobody else changes local maps."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))


def replace_answers(
    connection: psycopg.Connection, schemas: MapSchemas, ended: Sequence[LocalRow], answers: Iterable[Answer]
) -> None:
    """End these versions, and insert the answers as new ones, counted on from the ended ones of the same source."""
    versions: dict[Source, int] = {}
    for row in ended:
        versions[row.answer.source] = max(row.version, versions.get(row.answer.source, 0))
    if ended:
        connection.execute(
            sql.SQL("UPDATE {} SET valid_until = now() WHERE id = ANY(%s)").format(schemas.local_map),
            ([row.id for row in ended],),
        )
    answers = list(answers)
    if not answers:
        return
    columns = sql.SQL(", ").join(map(sql.Identifier, (*_COLUMNS, "version")))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(schemas.local_map, columns)
    with connection.cursor().copy(statement) as copy:
        for answer in answers:
            whole = replace(answer, approved_concept_id=answer.chosen_concept_id)
            copy.write_row((*astuple(whole), versions.get(answer.source, 0) + 1))
