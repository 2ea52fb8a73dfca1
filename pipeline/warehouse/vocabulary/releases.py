"""The releases of a warehouse's vocabulary: the rows of `etl.vocabulary_release`, and the schemas that hold their tables.

The active release is in the vocabulary's own schema (`vocab`); each other one is in a schema of its own beside it
(`vocab_<hash>`), which carries our mark as its comment. Loading is `loading`, making another one active is `switching`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pipeline.core.errors import UsageError, VocabularyError
from pipeline.warehouse.connection import connect
from pipeline.warehouse.server_failures import server_errors
from pipeline.warehouse.vocabulary.download import release_date

__all__ = [
    "ReleaseSchemas",
    "VocabularyRelease",
    "concept_counts",
    "current_release",
    "find_release",
    "list_releases",
    "load_lock",
    "prune_releases",
]

#: Advisory lock for loading and switching, so that they come one after the other ("voca" in ASCII).
_LOAD_LOCK = 0x766F6361

_LOAD_ADVICE = "Load one with `epic-omop vocabulary load FOLDER`."
_LIST_ADVICE = "`epic-omop vocabulary list` shows what there is."
_COLUMNS = (
    "release, loaded_at, folder_label, concept_count, content_hash, is_current, state, schema_name, active_since,"
    " download_hash, vocabularies, notes"
)
#: How long the tables of a release that goes are waited for: whoever reads them still keeps them.
_DROP_TIMEOUT = "2s"


@dataclass(frozen=True)
class VocabularyRelease:
    """A row of `etl.vocabulary_release`."""

    #: `vocabulary_version` of the vocabulary "None", or the first 16 digits of the content's hash.
    release: str
    loaded_at: datetime
    #: Name of the folder it came from, without its path.
    folder_label: str
    concept_count: int
    #: SHA-256 over the files, what was selected of them, and what the site added (`carried_digest`).
    content_hash: str
    is_current: bool = True
    #: loading, ready or dropped (its tables are gone)
    state: str = "ready"
    #: None: the vocabulary's own schema, where it is the active one
    schema_name: str | None = None
    active_since: datetime | None = None
    download_hash: str | None = None
    #: vocabulary_id → concepts, maps_to (counts), version; {} of releases that were loaded before there were counts
    vocabularies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: repairs, ignored, cpt4, left_out, overruled, warnings: see `loading`
    notes: Mapping[str, Any] = field(default_factory=dict)

    def is_older_than(self, other: VocabularyRelease) -> bool:
        """By the day in their labels; labels without one cannot be compared."""
        own, others = release_date(self.release), release_date(other.release)
        return own is not None and others is not None and own < others


@dataclass(frozen=True)
class ReleaseSchemas:
    """The names of schemas, and the statements on `etl.vocabulary_release`."""

    vocab: str
    etl: str

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(self.etl, "vocabulary_release")

    @property
    def mark(self) -> str:
        """Comment of a schema that we made for this warehouse."""
        return f"epic-omop vocabulary release of {self.etl} beside {self.vocab}"

    def free_name(self, connection: psycopg.Connection, content_hash: str) -> str:
        """A name for the schema of a release that is not active."""
        base = f"{self.vocab[:44]}_{content_hash[:12]}"
        names = (base, *(f"{base}_{number}" for number in range(2, 1000)))
        rows = connection.execute("SELECT nspname FROM pg_catalog.pg_namespace").fetchall()
        taken = {name for (name,) in rows}
        return next(name for name in names if name not in taken)

    def schema_of(self, release: VocabularyRelease) -> str:
        return self.vocab if release.is_current or release.schema_name is None else release.schema_name

    def all(self, connection: psycopg.Connection) -> list[VocabularyRelease]:
        """The active one first, then the latest."""
        query = sql.SQL(
            "SELECT "
            + _COLUMNS
            + " FROM {} ORDER BY is_current DESC, coalesce(active_since, loaded_at) DESC, content_hash"
        )
        return [VocabularyRelease(*row) for row in connection.execute(query.format(self.table))]

    def current(self, connection: psycopg.Connection) -> VocabularyRelease | None:
        return next((release for release in self.all(connection) if release.is_current), None)

    def save(self, connection: psycopg.Connection, release: VocabularyRelease) -> None:
        """Insert the row, or replace it where this content is known already."""
        values = (
            *(release.release, release.loaded_at, release.folder_label, release.concept_count, release.content_hash),
            *(release.is_current, release.state, release.schema_name, release.active_since, release.download_hash),
            *(Jsonb(dict(release.vocabularies)), Jsonb(dict(release.notes))),
        )
        updated = ", ".join(f"{name.strip()} = excluded.{name.strip()}" for name in _COLUMNS.split(","))
        connection.execute(
            sql.SQL(
                "INSERT INTO {} (" + _COLUMNS + ") VALUES (" + ", ".join(["%s"] * len(values)) + ")"
                " ON CONFLICT (content_hash) DO UPDATE SET " + updated
            ).format(self.table),
            values,
        )

    def forget(self, connection: psycopg.Connection, content_hash: str) -> None:
        connection.execute(sql.SQL("DELETE FROM {} WHERE content_hash = %s").format(self.table), (content_hash,))

    def marked_schemas(self, connection: psycopg.Connection) -> list[str]:
        """All schemas that were made for releases of this warehouse and are not the active one."""
        rows = connection.execute(
            "SELECT nspname FROM pg_catalog.pg_namespace WHERE pg_catalog.obj_description(oid, 'pg_namespace') = %s"
            " AND nspname <> %s ORDER BY 1",
            (self.mark, self.vocab),
        ).fetchall()
        return [name for (name,) in rows]


@contextmanager
def load_lock(url: str) -> Iterator[None]:
    """One process at a time loads, switches or prunes; another one waits. The server lets go when the process dies."""
    with server_errors(), connect(url) as connection:
        connection.autocommit = True
        connection.execute("SET idle_session_timeout = 0")
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOAD_LOCK,))
        yield


def current_release(url: str, *, etl_schema: str) -> VocabularyRelease | None:
    """The release that is active now; None before the first load."""
    with server_errors(), connect(url) as connection:
        return ReleaseSchemas("", etl_schema).current(connection)


def list_releases(url: str, *, etl_schema: str) -> list[VocabularyRelease]:
    """All that were ever loaded: the active one first, then the latest; those whose tables are gone as well."""
    with server_errors(), connect(url) as connection:
        return ReleaseSchemas("", etl_schema).all(connection)


def find_release(releases: list[VocabularyRelease], name: str) -> VocabularyRelease:
    """The one that a user means: a label, or the beginning of a content hash (≥ 4 digits).

    Of several with the label whose tables are there, none is chosen. Raises UsageError.
    """
    text = name.strip().casefold()
    by_hash = [item for item in releases if len(text) >= 4 and item.content_hash.startswith(text)]
    by_label = [item for item in releases if item.release.casefold() == text]
    found = by_hash or by_label
    if not found:
        raise UsageError(f"There is no vocabulary release {name}.", _LIST_ADVICE)
    there = [item for item in found if item.state == "ready"]
    if len(there) > 1:
        hashes = ", ".join(item.content_hash[:12] for item in there)
        raise UsageError(f"{name} is the name of several releases.", f"Give a hash instead: {hashes}.")
    return there[0] if there else found[0]


def concept_counts(url: str, *, vocab_schema: str) -> dict[str, int]:
    """Concepts by vocabulary_id, the largest vocabulary first."""
    query = sql.SQL("SELECT vocabulary_id, count(*) FROM {} GROUP BY 1 ORDER BY 2 DESC, 1").format(
        sql.Identifier(vocab_schema, "concept")
    )
    with connect(url) as connection:
        return {str(vocabulary): int(count) for vocabulary, count in connection.execute(query)}


def prune_releases(url: str, schemas: ReleaseSchemas, *, keep: int) -> tuple[list[VocabularyRelease], list[str]]:
    """Drop the tables of all but the active release and the `keep` - 1 that were active last; what interrupted loads left
    goes as well. Call it under `load_lock`.

    Returns the releases that went, and a sentence for each that had to stay: somebody reads it, or a view needs it.
    """
    with server_errors(), connect(url) as connection:
        connection.autocommit = True
        releases = schemas.all(connection)
        others = [item for item in releases if item.state == "ready" and not item.is_current]
        once_active = [item for item in others if item.active_since is not None]
        kept = {item.content_hash for item in once_active[: max(0, keep - 1)]}
        gone, problems = [], []
        for release in releases:
            if release.is_current or release.state == "dropped" or release.content_hash in kept:
                continue
            problem = _drop_schema(connection, release.schema_name) if release.schema_name else None
            if problem is not None:
                problems.append(f"Vocabulary {release.release} ({release.content_hash[:12]}) stays: {problem}.")
                continue
            _mark_dropped(connection, schemas, release)
            gone.append(release)
        in_use = {item.schema_name for item in schemas.all(connection) if item.state == "ready"}
        problems += [
            f"The schema {name}, which an earlier load left, stays: {problem}."
            for name in schemas.marked_schemas(connection)
            if name not in in_use and (problem := _drop_schema(connection, name)) is not None
        ]
        return gone, problems


def usable(release: VocabularyRelease) -> VocabularyRelease:
    """The release, if its tables are there. Raises VocabularyError."""
    if release.state != "ready":
        raise VocabularyError(
            f"The tables of vocabulary {release.release} ({release.content_hash[:12]}) are gone.",
            f"Load its download again: it came from a folder named {release.folder_label}.",
        )
    return release


def _mark_dropped(connection: psycopg.Connection, schemas: ReleaseSchemas, release: VocabularyRelease) -> None:
    if release.active_since is None:  # nothing was ever made from it
        schemas.forget(connection, release.content_hash)
        return
    connection.execute(
        sql.SQL("UPDATE {} SET state = 'dropped', schema_name = NULL WHERE content_hash = %s").format(schemas.table),
        (release.content_hash,),
    )


def _drop_schema(connection: psycopg.Connection, schema: str) -> str | None:
    """DROP SCHEMA, unless something outside of it needs its tables. Returns why it stays."""
    row = connection.execute("SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s", (schema,)).fetchone()
    if row is None:
        return None
    dependents = connection.execute(
        "SELECT DISTINCT view.oid::regclass::text FROM pg_catalog.pg_depend AS item"
        " JOIN pg_catalog.pg_rewrite AS rule ON rule.oid = item.objid AND item.classid = 'pg_rewrite'::regclass"
        " JOIN pg_catalog.pg_class AS view ON view.oid = rule.ev_class"
        " JOIN pg_catalog.pg_class AS source ON source.oid = item.refobjid AND item.refclassid = 'pg_class'::regclass"
        " WHERE source.relnamespace = %(schema)s AND view.relnamespace <> %(schema)s"
        " UNION SELECT conrelid::regclass::text FROM pg_catalog.pg_constraint AS item"
        " JOIN pg_catalog.pg_class AS target ON target.oid = item.confrelid"
        " WHERE target.relnamespace = %(schema)s AND item.connamespace <> %(schema)s"
        # Columns, functions and types that name a table, or a row of one: CASCADE would take them away without a word.
        " UNION SELECT (pg_identify_object(item.classid, item.objid, 0)).identity FROM pg_catalog.pg_depend AS item"
        " LEFT JOIN pg_catalog.pg_class AS user_table"
        "   ON item.classid = 'pg_class'::regclass AND user_table.oid = item.objid"
        " LEFT JOIN pg_catalog.pg_proc AS routine ON item.classid = 'pg_proc'::regclass AND routine.oid = item.objid"
        " LEFT JOIN pg_catalog.pg_type AS kind ON item.classid = 'pg_type'::regclass AND kind.oid = item.objid"
        " WHERE item.deptype = 'n' AND coalesce(user_table.relnamespace, routine.pronamespace, kind.typnamespace) <> %(schema)s"
        " AND (item.refclassid = 'pg_class'::regclass"
        "   AND item.refobjid IN (SELECT oid FROM pg_catalog.pg_class WHERE relnamespace = %(schema)s)"
        "  OR item.refclassid = 'pg_type'::regclass"
        "   AND item.refobjid IN (SELECT oid FROM pg_catalog.pg_type WHERE typnamespace = %(schema)s)"
        "  OR item.refclassid = 'pg_proc'::regclass"
        "   AND item.refobjid IN (SELECT oid FROM pg_catalog.pg_proc WHERE pronamespace = %(schema)s)) ORDER BY 1",
        {"schema": row[0]},
    ).fetchall()
    if dependents:
        return f"{', '.join(name for (name,) in dependents[:5])} needs its tables; make that anew, then prune again"
    try:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_DROP_TIMEOUT)))
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    except psycopg.errors.LockNotAvailable:
        return "somebody still reads its tables; `epic-omop vocabulary prune` removes it later"
    except psycopg.errors.InsufficientPrivilege:
        return f"the database user may not drop the schema {schema}"
    return None
