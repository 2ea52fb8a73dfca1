"""The names under which Standard concepts are found: tables beside a release's own, made once a release, when somebody asks.

`concept_name_search` holds a row for each name: of the concept itself, its synonyms, and the names of concepts that map to it
alone (of drugs not: packages are millions). `concept_name_word` holds the stems in them with their frequency, by which a
search begins with the rare ones. They are dropped with their release. Searching is `pipeline.quality.unmapped.suggestions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pipeline.core.errors import VocabularyError
from pipeline.warehouse.connection import connect
from pipeline.warehouse.roles import refresh_grants
from pipeline.warehouse.server_failures import server_errors
from pipeline.warehouse.vocabulary.releases import current_release
from pipeline.warehouse.vocabulary.switching import NAME_TABLES

__all__ = ["NameIndex", "ensure_name_index", "plain_name_of"]

_NAMES, _WORDS = NAME_TABLES
#: Counted up when the tables change.
_FORMAT = 1
#: "name" in ASCII: one process at a time makes the tables.
_LOCK = 0x6E616D65
_MEMORY = "512MB"

#: What spellings of a name have in common; the question is written so by the same expression.
_PLAIN = r"btrim(regexp_replace(lower({}), '[^[:alnum:]]+', ' ', 'g'))"

_MAKE = """
CREATE TABLE {schema}.{names} AS
WITH standard AS (
    SELECT concept_id, concept_name, domain_id FROM {schema}.concept
    WHERE standard_concept = 'S' AND invalid_reason IS NULL
), mapped AS (
    SELECT link.concept_id_1 AS source_id, min(link.concept_id_2) AS concept_id
    FROM {schema}.concept_relationship AS link
    WHERE link.relationship_id = 'Maps to' AND link.invalid_reason IS NULL AND link.concept_id_1 <> link.concept_id_2
    GROUP BY 1 HAVING count(*) = 1
), named AS (
    SELECT concept_id, domain_id, concept_name AS name, 1 AS kind FROM standard
    UNION ALL
    SELECT concept_id, domain_id, concept_synonym_name, 2 FROM standard JOIN {schema}.concept_synonym USING (concept_id)
    UNION ALL
    SELECT standard.concept_id, standard.domain_id, source.concept_name, 3
    FROM mapped JOIN standard USING (concept_id) JOIN {schema}.concept AS source ON source.concept_id = mapped.source_id
    WHERE standard.domain_id <> 'Drug'
)
SELECT concept_id, domain_id::text AS domain_id, """
_MAKE += _PLAIN.format("name") + " AS name, min(kind)::smallint AS kind FROM named GROUP BY 1, 2, 3"

_MAKE_WORDS = """
CREATE TABLE {schema}.{words} AS
SELECT word, ndoc AS names FROM ts_stat('SELECT to_tsvector(''pg_catalog.english'', name) FROM ' || {qualified})
"""

_INDICES = (
    "DELETE FROM {schema}.{names} WHERE name = ''",
    "CREATE INDEX ON {schema}.{names} USING gin (to_tsvector('pg_catalog.english', name)) WITH (fastupdate = off)",
    "CREATE INDEX ON {schema}.{names} USING hash (name)",
    "CREATE INDEX ON {schema}.{names} (concept_id)",
    _MAKE_WORDS,
    "CREATE UNIQUE INDEX ON {schema}.{words} (word)",
    "ANALYZE {schema}.{names}",
    "ANALYZE {schema}.{words}",
)


@dataclass(frozen=True)
class NameIndex:
    """Where the tables are, and what may be asked of them."""

    vocab_schema: str
    release: str
    #: schema of pg_trgm; None: the server does not have it
    trigram_schema: str | None

    @property
    def names(self) -> sql.Identifier:
        return sql.Identifier(self.vocab_schema, _NAMES)

    @property
    def words(self) -> sql.Identifier:
        return sql.Identifier(self.vocab_schema, _WORDS)

    @property
    def note(self) -> str | None:
        """A sentence where suggestions are less good than they could be."""
        if self.trigram_schema is not None:
            return None
        return (
            "The server has no extension pg_trgm: suggestions are of equal names and of the full text, without spelling"
            " mistakes. A superuser of the database can add it: CREATE EXTENSION pg_trgm (package postgresql-contrib)."
        )


def plain_name_of(column: str) -> str:
    """SQL: a name as the index has it."""
    return _PLAIN.format(column)


def ensure_name_index(
    url: str,
    *,
    cdm_schema: str,
    vocab_schema: str,
    etl_schema: str,
    before: Callable[[], None] = lambda: None,
) -> NameIndex:
    """The names of the active release, made now where they are missing or of another one; `before` is called then.

    Raises VocabularyError where no vocabulary is loaded, and where this user may not make the tables.
    """
    release = current_release(url, etl_schema=etl_schema)
    if release is None:
        raise VocabularyError("No vocabulary is loaded.", "Load one with `epic-omop vocabulary load FOLDER`.")
    mark = f"{release.content_hash} {_FORMAT}"
    with server_errors(), connect(url) as connection:
        connection.autocommit = True
        if _mark_of(connection, vocab_schema) != mark:
            before()
            connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            if _mark_of(connection, vocab_schema) != mark:
                _make_or_refuse(connection, cdm_schema, vocab_schema, etl_schema, mark)
            connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
        return NameIndex(vocab_schema, release.release, _trigram_schema(connection))


def _mark_of(connection: psycopg.Connection, schema: str) -> str | None:
    """Content and layout that the tables were made from; None without tables."""
    row = connection.execute(
        "SELECT obj_description(to_regclass(%s), 'pg_class')", (sql.Identifier(schema, _NAMES).as_string(connection),)
    ).fetchone()
    return row[0] if row else None


def _make_or_refuse(connection: psycopg.Connection, cdm: str, vocab: str, etl: str, mark: str) -> None:
    try:
        _add_trigrams(connection, etl)
        with connection.transaction():
            _make(connection, vocab, mark)
            refresh_grants(connection, cdm=cdm, vocab=vocab, etl=etl)
    except psycopg.errors.InsufficientPrivilege as error:
        raise VocabularyError(
            "Names of this vocabulary release are not prepared for suggestions yet, and this database user may not do it.",
            "Whoever loads (omop_etl) runs once after each release: `epic-omop vocabulary suggest fever`.",
        ) from error


def _make(connection: psycopg.Connection, schema: str, mark: str) -> None:
    connection.execute(sql.SQL("SET LOCAL maintenance_work_mem = {}").format(sql.Literal(_MEMORY)))
    connection.execute("SET LOCAL work_mem = '128MB'")
    names = {"schema": sql.Identifier(schema), "names": sql.Identifier(_NAMES), "words": sql.Identifier(_WORDS)}
    qualified = sql.Literal(sql.Identifier(schema, _NAMES).as_string(connection))
    for table in NAME_TABLES:
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(schema, table)))
    for statement in (_MAKE, *_INDICES):
        connection.execute(sql.SQL(statement).format(**names, qualified=qualified))
    trigrams = _trigram_schema(connection)
    if trigrams is not None:
        connection.execute(
            sql.SQL("CREATE INDEX ON {} USING gin (word {})").format(
                sql.Identifier(schema, _WORDS), sql.Identifier(trigrams, "gin_trgm_ops")
            )
        )
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(schema, _NAMES), sql.Literal(mark)))


def _add_trigrams(connection: psycopg.Connection, etl: str) -> None:
    """pg_trgm, where the server has it and this user may add it."""
    if _trigram_schema(connection) is not None:
        return
    statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA {}").format(sql.Identifier(etl))
    try:
        with connection.transaction():
            connection.execute(statement)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported):
        return


def _trigram_schema(connection: psycopg.Connection) -> str | None:
    """Where pg_trgm is, if this user may call it there."""
    row = connection.execute(
        "SELECT space.nspname FROM pg_extension AS item JOIN pg_namespace AS space ON space.oid = item.extnamespace"
        " WHERE item.extname = 'pg_trgm' AND has_schema_privilege(space.oid, 'USAGE')"
    ).fetchone()
    return row[0] if row else None
