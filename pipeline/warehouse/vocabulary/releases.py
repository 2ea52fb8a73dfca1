"""Which vocabulary is loaded: the rows of `etl.vocabulary_release`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg
from psycopg import sql

from pipeline.warehouse.connection import connect

__all__ = ["VocabularyRelease", "concept_counts", "current_release", "record_release"]


@dataclass(frozen=True)
class VocabularyRelease:
    """A row of `etl.vocabulary_release`."""

    #: `vocabulary_version` of the vocabulary "None", or the first 16 digits of the content's hash.
    release: str
    loaded_at: datetime
    #: Name of the folder it came from, without its path.
    folder_label: str
    concept_count: int
    #: SHA-256 over the files and the source_to_concept_map.
    content_hash: str


def record_release(
    connection: psycopg.Connection, folder: Path, content_hash: str, vocab_schema: str, etl_schema: str
) -> VocabularyRelease:
    version = connection.execute(
        sql.SQL("SELECT vocabulary_version FROM {} WHERE vocabulary_id = 'None'").format(
            sql.Identifier(vocab_schema, "vocabulary")
        )
    ).fetchone()
    release = (version[0] or "").strip() if version else ""
    releases = sql.Identifier(etl_schema, "vocabulary_release")
    connection.execute(sql.SQL("UPDATE {} SET is_current = false WHERE is_current").format(releases))
    connection.execute(
        sql.SQL(
            "INSERT INTO {} (release, loaded_at, folder_label, concept_count, content_hash, is_current)"
            " VALUES (%s, now(), %s, (SELECT count(*) FROM {}), %s, true)"
            " ON CONFLICT (release) DO UPDATE SET loaded_at = excluded.loaded_at, is_current = true,"
            " folder_label = excluded.folder_label, concept_count = excluded.concept_count,"
            " content_hash = excluded.content_hash"
        ).format(releases, sql.Identifier(vocab_schema, "concept")),
        (release or content_hash[:16], folder.resolve().name, content_hash),
    )
    current = _current(connection, etl_schema)
    assert current is not None
    return current


def current_release(url: str, *, etl_schema: str) -> VocabularyRelease | None:
    """The release that is loaded now; None before the first load."""
    with connect(url) as connection:
        return _current(connection, etl_schema)


def _current(connection: psycopg.Connection, etl_schema: str) -> VocabularyRelease | None:
    query = sql.SQL(
        "SELECT release, loaded_at, folder_label, concept_count, content_hash FROM {} WHERE is_current"
    ).format(sql.Identifier(etl_schema, "vocabulary_release"))
    row = connection.execute(query).fetchone()
    return VocabularyRelease(*row) if row else None


def concept_counts(url: str, *, vocab_schema: str) -> dict[str, int]:
    """Concepts by vocabulary_id, the largest vocabulary first."""
    query = sql.SQL("SELECT vocabulary_id, count(*) FROM {} GROUP BY 1 ORDER BY 2 DESC, 1").format(
        sql.Identifier(vocab_schema, "concept")
    )
    with connect(url) as connection:
        return {str(vocabulary): int(count) for vocabulary, count in connection.execute(query)}
