"""Making another release the active one: two schemas are renamed in one transaction.

A rename takes no lock on tables, so that a transaction which has read `vocab.concept` neither waits nor makes anybody wait.
What does need locks (foreign keys of other tables, views, a site's own objects in the schema) is asked for with a short
`lock_timeout` and again later, so that no queue forms behind us; who is in the way is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import psycopg
from psycopg import errors, sql

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import VocabularyError
from pipeline.warehouse.connection import connect
from pipeline.warehouse.server_failures import server_failure
from pipeline.warehouse.vocabulary.carried import carried_digest, carry_over
from pipeline.warehouse.vocabulary.releases import ReleaseSchemas, VocabularyRelease
from pipeline.warehouse.vocabulary.structure import complete_tables, copy_grants, installed_tables, plain_names

__all__ = [
    "NAME_TABLES",
    "Switch",
    "broken_references",
    "content_hash",
    "hold_vocabulary",
    "refuse_without_rights",
    "switch_release",
]

#: Made from a release by `name_index`, and no part of what a site keeps: they stay with the release.
NAME_TABLES = ("concept_name_search", "concept_name_word")

#: Longer than this nobody waits behind us.
_LOCK_TIMEOUT = "400ms"
#: For locks behind which no reader waits: long enough that the server calls an automatic vacuum off for us.
_WRITERS_LOCK_TIMEOUT = "3s"
_PAUSE_SECONDS = 0.5
#: After this the release stays ready, and `vocabulary use` makes it active later.
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Switch:
    """The release that became active, and what did not follow it, as sentences."""

    release: VocabularyRelease
    warnings: tuple[str, ...]


def content_hash(download_hash: str, carried: str) -> str:
    """Of a release: its files and what the site added to it."""
    return hashlib.sha256(f"{download_hash}\0{carried}".encode()).hexdigest()


def hold_vocabulary(connection: psycopg.Connection, etl_schema: str) -> None:
    """Until the connection is closed no other release becomes active: for whoever reads whole vocabulary tables by their
    names, one after the other. Commits, so that a snapshot is taken afterwards."""
    connection.execute("SELECT pg_advisory_lock_shared(hashtext(%s))", (_switch_key(etl_schema),))
    connection.commit()


def _switch_key(etl_schema: str) -> str:
    return f"epic-omop vocabulary {etl_schema}"


def _publication_key(etl_schema: str) -> str:
    # as `pipeline.warehouse.export_jobs.lock_warehouse` makes it, whose search_path begins with the etl schema
    return f"epic-omop publication {etl_schema}"


def refuse_without_rights(connection: psycopg.Connection, schemas: ReleaseSchemas) -> None:
    """Raises VocabularyError, with what the administrator has to do, where this user may not make and rename schemas."""
    row = connection.execute(
        "SELECT has_database_privilege(current_database(), 'CREATE'), pg_has_role(nspowner, 'USAGE'),"
        " current_database(), current_user FROM pg_catalog.pg_namespace WHERE nspname = %s",
        (schemas.vocab,),
    ).fetchone()
    assert row is not None
    may_create, owns, database, user = row
    needed = []
    if not may_create:
        needed.append(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(*map(sql.Identifier, (database, user))))
    if not owns:
        needed.append(sql.SQL("ALTER SCHEMA {} OWNER TO {}").format(*map(sql.Identifier, (schemas.vocab, user))))
    if needed:
        statements = "; ".join(statement.as_string(connection) for statement in needed)
        raise VocabularyError(
            f"The database user {user} may not put a release beside the active one: each has a schema of its own.",
            f"Who administers the database can run `epic-omop db init`, or this: {statements}.",
        )


def broken_references(connection: psycopg.Connection, active: str, fresh: str) -> list[str]:
    """Optional foreign keys of other tables that the fresh ones would violate, as sentences with one value each."""
    found = []
    for key in _outer_keys(connection, active):
        query = sql.SQL(
            "SELECT item.{column} FROM {source} AS item WHERE item.{column} IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM {target} AS own WHERE own.{target_column} = item.{column}) LIMIT 1"
        ).format(
            column=sql.Identifier(key.column),
            source=sql.Identifier(*key.source),
            target=sql.Identifier(fresh, key.target),
            target_column=sql.Identifier(key.target_column),
        )
        row = connection.execute(query).fetchone()
        if row is not None:
            found.append(f"it violates foreign key {key.name} of {'.'.join(key.source)}: it does not have {row[0]}")
    return found


def switch_release(
    url: str,
    schemas: ReleaseSchemas,
    release: VocabularyRelease,
    *,
    replace_custom: bool,
    with_map: bool,
    clock: Clock | None = None,
    patience: float = PATIENCE_SECONDS,
    waiting: Callable[[str], None] = lambda _: None,
) -> Switch:
    """Make a ready release the active one. Call it under `load_lock`.

    Custom concepts, source_to_concept_map (`with_map`), grants, views, foreign keys and whatever else a site keeps in the
    schema go over. A publication that is under way is waited for, as is a snapshot that holds the vocabulary; `waiting` is
    called with who is in the way. Raises VocabularyError when that takes longer than `patience` seconds: the release stays
    ready.
    """
    clock = clock or SystemClock()
    with connect(url) as connection:
        connection.autocommit = True
        refuse_without_rights(connection, schemas)
        began = clock.now()
        attempt = _Attempt(connection, schemas, release, clock.now(), replace_custom, with_map)
        while True:
            try:
                switched = attempt.run()
                break
            except errors.LockNotAvailable:
                holders = attempt.holders()
                if (clock.now() - began).total_seconds() >= patience:
                    raise VocabularyError(
                        f"Vocabulary {release.release} is loaded, but cannot become the active one: {holders}.",
                        "When that has ended: `epic-omop vocabulary use "
                        f"{release.content_hash[:12]}`. Until then the former release stays active.",
                    ) from None
                waiting(holders)
                clock.sleep(_PAUSE_SECONDS)
            except psycopg.Error as error:
                failure = server_failure(error)
                reason = str(error).strip().partition("\n")[0]
                raise failure or VocabularyError(
                    f"Vocabulary {release.release} cannot become the active one: {reason}",
                    "The former release stays active. See to what the message names, then `epic-omop vocabulary use "
                    f"{release.content_hash[:12]}`.",
                ) from error
        attempt.validate()
        return switched


@dataclass(frozen=True)
class _OuterKey:
    """A foreign key of another table to a vocabulary table."""

    source: tuple[str, str]
    name: str
    column: str
    target: str
    target_column: str
    definition: str
    is_validated: bool


@dataclass
class _Attempt:
    connection: psycopg.Connection
    schemas: ReleaseSchemas
    release: VocabularyRelease
    now: datetime
    replace_custom: bool
    with_map: bool
    #: what was asked for last: relations as text, or the key of an advisory lock
    _asked: Sequence[str] = ()
    _asked_key: str | None = None
    _to_validate: list[_OuterKey] = field(default_factory=list)

    def run(self) -> Switch:
        incoming = self.release.schema_name
        assert incoming is not None
        active = self.schemas.vocab
        connection = self.connection
        with connection.transaction():
            plain_names(connection)
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_WRITERS_LOCK_TIMEOUT)))
            self._lock_out_others(active)
            former = self.schemas.current(connection)
            complete_tables(connection, active, incoming)
            tables = installed_tables(connection, incoming)
            carry_over(connection, active, incoming, tables, with_map=self.with_map, replace=self.replace_custom)
            carried = carried_digest(connection, incoming, tables)
            warnings = copy_grants(connection, active, incoming, tables)
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
            keys = _outer_keys(connection, active)
            views, left_behind = _views(connection, active)
            self._drop_keys(keys)
            self._move_own_objects(active, incoming)
            former_name = self._rename(active, incoming, former)
            self._bring_along(keys, views)
            switched = self._record(former, former_name, carried)
            self._to_validate = [key for key in keys if key.is_validated]
        return Switch(switched, tuple(f"{text}." for text in (*warnings, *left_behind)))

    def validate(self) -> None:
        """Foreign keys hold for every row, as they did: `broken_references` has seen to it. Nobody waits for this."""
        for key in self._to_validate:
            self.connection.execute(
                sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
                    sql.Identifier(*key.source), sql.Identifier(key.name)
                )
            )

    def holders(self) -> str:
        """Who holds what was asked for last. No statement of theirs is shown: it may quote a patient."""
        if self._asked_key is not None:
            condition, value = "item.locktype = 'advisory' AND item.objid = hashtext(%s)::oid", self._asked_key
        else:
            condition, value = "item.relation = ANY(%s::regclass[])", list(self._asked)  # type: ignore[assignment]
        rows = self.connection.execute(
            "SELECT DISTINCT holder.pid, holder.usename, holder.application_name, holder.state, holder.xact_start"
            " FROM pg_locks AS item JOIN pg_stat_activity AS holder USING (pid)"
            f" WHERE item.granted AND holder.pid <> pg_backend_pid() AND {condition} ORDER BY holder.xact_start LIMIT 3",
            (value,),
        ).fetchall()
        what = "a publication or snapshot" if self._asked_key is not None else ", ".join(self._asked)
        if not rows:
            return f"{what} was locked a moment ago"
        named = [
            f"process {pid} of the server (user {user}, program {program or 'unknown'}, {state or 'busy'}"
            f"{f', since {since:%Y-%m-%d %H:%M:%S} UTC' if since else ''})"
            for pid, user, program, state, since in rows
        ]
        return f"{' and '.join(named)} holds {what}"

    def _lock_out_others(self, active: str) -> None:
        """Publications, snapshots of the vocabulary, and writers of what goes over; no reader."""
        for key in (_publication_key(self.schemas.etl), _switch_key(self.schemas.etl)):
            self._asked_key = key
            self.connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (key,))
        self._asked_key = None
        tables = installed_tables(self.connection, active)
        self._lock([(active, table) for table in tables], "SHARE")

    def _lock(self, relations: Iterable[tuple[str, str]], mode: str) -> None:
        names = [sql.Identifier(*relation) for relation in relations]
        self._asked = [name.as_string(self.connection) for name in names]
        if names:
            self.connection.execute(sql.SQL("LOCK TABLE {} IN " + mode + " MODE").format(sql.SQL(", ").join(names)))

    def _drop_keys(self, keys: list[_OuterKey]) -> None:
        for key in keys:
            self._asked = [
                sql.Identifier(*key.source).as_string(self.connection),
                sql.Identifier(self.schemas.vocab, key.target).as_string(self.connection),
            ]
            self.connection.execute(
                sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                    sql.Identifier(*key.source), sql.Identifier(key.name)
                )
            )

    def _move_own_objects(self, active: str, incoming: str) -> None:
        """What others have put into the vocabulary's schema stays in the schema of that name."""
        rows = self.connection.execute(
            "SELECT relation.relkind::text, relation.relname FROM pg_class AS relation"
            " JOIN pg_namespace AS space ON space.oid = relation.relnamespace"
            " WHERE space.nspname = %s AND relation.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relation.relname <> ALL(%s)"
            " AND NOT EXISTS (SELECT FROM pg_depend AS item WHERE item.classid = 'pg_class'::regclass"
            "   AND item.objid = relation.oid AND item.deptype IN ('a', 'i', 'e')) ORDER BY 2",
            (active, [*installed_tables(self.connection, active), *NAME_TABLES]),
        ).fetchall()
        words = {"v": "VIEW", "m": "MATERIALIZED VIEW", "S": "SEQUENCE", "f": "FOREIGN TABLE"}
        for kind, name in rows:
            self._asked = [sql.Identifier(active, name).as_string(self.connection)]
            self.connection.execute(
                sql.SQL("ALTER " + words.get(kind, "TABLE") + " {} SET SCHEMA {}").format(
                    sql.Identifier(active, name), sql.Identifier(incoming)
                )
            )
        routines = self.connection.execute(
            "SELECT routine.oid::regprocedure::text FROM pg_proc AS routine"
            " JOIN pg_namespace AS space ON space.oid = routine.pronamespace WHERE space.nspname = %s"
            " AND NOT EXISTS (SELECT FROM pg_depend AS item WHERE item.classid = 'pg_proc'::regclass"
            "   AND item.objid = routine.oid AND item.deptype = 'e')",
            (active,),
        ).fetchall()
        for (name,) in routines:
            self.connection.execute(
                sql.SQL("ALTER ROUTINE " + name + " SET SCHEMA {}").format(sql.Identifier(incoming))
            )

    def _rename(self, active: str, incoming: str, former: VocabularyRelease | None) -> str:
        connection = self.connection
        name = self.schemas.free_name(connection, former.content_hash if former else "0" * 12)
        for before, after in ((active, name), (incoming, active)):
            connection.execute(
                sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(before), sql.Identifier(after))
            )
        for schema, mark in ((name, self.schemas.mark), (active, "OMOP vocabulary")):
            connection.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(schema), sql.Literal(mark)))
        return name

    def _bring_along(self, keys: list[_OuterKey], views: list[tuple[str, str]]) -> None:
        for key in keys:
            definition = key.definition.removesuffix(" NOT VALID")
            self.connection.execute(
                sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} ").format(
                    sql.Identifier(*key.source), sql.Identifier(key.name)
                )
                + sql.SQL(definition.replace("{", "{{").replace("}", "}}") + " NOT VALID")
            )
        for name, statement in views:
            self._asked = [name]
            self.connection.execute(statement.encode())

    def _record(self, former: VocabularyRelease | None, former_name: str, carried: str) -> VocabularyRelease:
        connection, release = self.connection, self.release
        if former is not None:
            connection.execute(
                sql.SQL("UPDATE {} SET is_current = false, schema_name = %s WHERE is_current").format(
                    self.schemas.table
                ),
                (former_name,),
            )
        # What the site added may be other than when this release was loaded, or was active last.
        hashed = content_hash(release.download_hash, carried) if release.download_hash else release.content_hash
        if hashed != release.content_hash:
            self.schemas.forget(connection, release.content_hash)
        if former is not None and former.content_hash == hashed:  # the same content again: its former tables go
            self.schemas.forget(connection, hashed)
        count = connection.execute(
            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(self.schemas.vocab, "concept"))
        ).fetchone()
        assert count is not None
        switched = replace(
            release,
            content_hash=hashed,
            release=hashed[:16] if release.release == release.content_hash[:16] else release.release,
            concept_count=int(count[0]),
            is_current=True,
            schema_name=None,
            active_since=self.now,
        )
        self.schemas.save(connection, switched)
        return switched


def _outer_keys(connection: psycopg.Connection, active: str) -> list[_OuterKey]:
    rows = connection.execute(
        "SELECT space.nspname, source.relname, item.conname, column_of.attname, target.relname, target_column.attname,"
        " pg_get_constraintdef(item.oid), item.convalidated FROM pg_catalog.pg_constraint AS item"
        " JOIN pg_catalog.pg_class AS source ON source.oid = item.conrelid"
        " JOIN pg_catalog.pg_namespace AS space ON space.oid = source.relnamespace"
        " JOIN pg_catalog.pg_class AS target ON target.oid = item.confrelid"
        " JOIN pg_catalog.pg_namespace AS place ON place.oid = target.relnamespace"
        " JOIN pg_catalog.pg_attribute AS column_of ON column_of.attrelid = source.oid AND column_of.attnum = item.conkey[1]"
        " JOIN pg_catalog.pg_attribute AS target_column"
        "   ON target_column.attrelid = target.oid AND target_column.attnum = item.confkey[1]"
        " WHERE item.contype = 'f' AND place.nspname = %(active)s AND target.relname = ANY(%(tables)s)"
        " AND item.conparentid = 0 AND NOT (space.nspname = %(active)s AND source.relname = ANY(%(tables)s)) ORDER BY 1, 2, 3",
        {"active": active, "tables": installed_tables(connection, active)},
    ).fetchall()
    return [_OuterKey((row[0], row[1]), *row[2:]) for row in rows]


def _views(connection: psycopg.Connection, active: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(name, statement that makes it anew after the rename) of views that read vocabulary tables, and a sentence for each
    thing that cannot follow. Call it with `plain_names`."""
    rows = connection.execute(
        "SELECT DISTINCT view.oid, view.relkind::text, space.nspname, view.relname, pg_has_role(view.relowner, 'USAGE'),"
        " pg_get_userbyid(view.relowner), view.reloptions FROM pg_depend AS item"
        " JOIN pg_rewrite AS rule ON rule.oid = item.objid AND item.classid = 'pg_rewrite'::regclass"
        " JOIN pg_class AS view ON view.oid = rule.ev_class AND view.relkind IN ('v', 'm')"
        " JOIN pg_namespace AS space ON space.oid = view.relnamespace"
        " JOIN pg_class AS source ON source.oid = item.refobjid AND item.refclassid = 'pg_class'::regclass"
        " JOIN pg_namespace AS place ON place.oid = source.relnamespace"
        " WHERE place.nspname = %s AND source.relname = ANY(%s) ORDER BY 1",
        (active, installed_tables(connection, active)),
    ).fetchall()
    views, left_behind = [], []
    for oid, kind, schema, name, is_ours, owner, options in rows:
        if kind == "m" or not is_ours:
            what = "materialized view" if kind == "m" else "view"
            left_behind.append(f"the {what} {schema}.{name} of {owner} still reads the former release: make it anew")
            continue
        definition = connection.execute("SELECT pg_get_viewdef(%s::oid)", (oid,)).fetchone()
        assert definition is not None
        # It is in the schema of that name after the rename as well: a site's own objects go over.
        qualified = sql.Identifier(schema, name).as_string(connection)
        with_options = f" WITH ({', '.join(options)})" if options else ""
        views.append((qualified, f"CREATE OR REPLACE VIEW {qualified}{with_options} AS {definition[0]}"))
    return views, left_behind
