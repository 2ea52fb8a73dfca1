"""Who may do what in the warehouse: four database roles without a login, as SQL, and whether this user may make them.

`omop_etl` loads: it owns the tables of the three schemas except those of the access log, to which it may only add.
`omop_reader` reads `cdm` and `vocab`; `omop_steward` dead letters, unmapped codes and, to write, local maps, with `vocab`;
`omop_auditor` the access log. A person's or program's own database user is made a member of them (`grant_role`).

Roles are of a whole server: a second warehouse in it, whose readers are others, sets `EPIC_OMOP_ROLE_SUFFIX`.
What the tables are is in `omop_schema`; how they are made in `schema.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psycopg
from psycopg import sql

from omop_schema.cdm import TABLES, sequence_name
from pipeline.core.errors import UsageError, WarehouseError
from pipeline.warehouse.connection import connect
from pipeline.warehouse.server_failures import server_errors

if TYPE_CHECKING:
    from pipeline.core.settings import Settings

__all__ = [
    "LOG_RELATIONS",
    "ROLES",
    "RoleName",
    "Warehouse",
    "grant_role",
    "grant_script",
    "install_roles",
    "refresh_grants",
    "role_script",
]

RoleName = Literal["omop_reader", "omop_steward", "omop_auditor", "omop_etl"]
ROLES: tuple[RoleName, ...] = ("omop_reader", "omop_steward", "omop_auditor", "omop_etl")

#: Relations of the etl schema that whoever loads may add to, and neither change nor own.
LOG_RELATIONS = ("access_log", "access_link", "access_head")
_LOG_FUNCTIONS = ("refuse_change_of_access_log", "link_access_log", "access_hash")

#: What of the etl schema a steward reads: dead letters with their lines, codes without a concept, counts of lines.
_STEWARD_READS = (
    *(
        "dead_letter",
        "dead_letter_open",
        "dead_letter_history",
        "unmapped_code",
        "row_issue",
        "exclusion",
        "file_account",
    ),
    *("unmapped_coding", "publication", "vocabulary_release", "coverage"),
    "alembic_version",  # whether the program fits the database
)
#: Of exports: which and when, not where they came from.
_STEWARD_COLUMNS = (
    "export_id",
    "site",
    "group_id",
    "kind",
    "state",
    "transaction_time",
    "requested_at",
    "published_at",
)
#: A steward's own work. Made by a later revision, and granted when it is there.
_STEWARD_WRITES = ("local_map",)
#: Whoever looks at patients' lines leaves an entry.
_LOG_WRITERS: tuple[RoleName, ...] = ("omop_etl", "omop_steward", "omop_auditor")


@dataclass(frozen=True)
class Warehouse:
    """The names of a warehouse in its database."""

    cdm: str
    vocab: str
    etl: str
    #: Added to the names of the roles.
    suffix: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Warehouse:
        return cls(settings.cdm_schema, settings.vocab_schema, settings.etl_schema, settings.role_suffix)

    def role(self, name: RoleName) -> str:
        return f"{name}{self.suffix}"

    @property
    def schemas(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.cdm, self.vocab, self.etl)))


def install_roles(url: str, warehouse: Warehouse) -> bool:
    """Make the roles with their rights where this user may; idempotent. False: it may not, and nothing was changed.

    It may as a superuser, or with CREATEROLE where it owns the schemas. The schemas are in place. Raises WarehouseError.
    """
    with server_errors(), connect(url) as connection:
        try:
            for statement in _statements(warehouse):
                connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            connection.rollback()
            return _are_installed(connection, warehouse)
    return True


def role_script(warehouse: Warehouse) -> str:
    """What `install_roles` does, as SQL for someone who may: psql in the warehouse's database."""
    return "\n".join(f"{statement};" for statement in ("BEGIN", *_statements(warehouse), "COMMIT")) + "\n"


def grant_role(url: str, warehouse: Warehouse, role: RoleName, user: str) -> bool:
    """Make a database user a member of a role. False: this user may not.

    Raises UsageError where there is no such user or role, WarehouseError where the server fails.
    """
    with server_errors(), connect(url) as connection:
        _refuse_unknown(connection, warehouse, role, user)
        try:
            for statement in _grant_statements(connection.info.dbname, warehouse, role, user):
                connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            connection.rollback()
            return False
    return True


def grant_script(database: str, warehouse: Warehouse, role: RoleName, user: str) -> str:
    return "".join(f"{statement};\n" for statement in _grant_statements(database, warehouse, role, user))


def refresh_grants(connection: psycopg.Connection, *, cdm: str, vocab: str, etl: str) -> None:
    """The same rights on tables that were made just now, by whoever owns them; nothing where there are no roles."""
    rows = connection.execute(
        "SELECT DISTINCT substr(role.rolname, length('omop_steward') + 1) FROM pg_namespace AS space,"
        " aclexplode(space.nspacl) AS given JOIN pg_roles AS role ON role.oid = given.grantee"
        " WHERE space.nspname = %s AND role.rolname LIKE 'omop\\_steward%%'",
        (etl,),
    ).fetchall()
    for (suffix,) in rows:
        for statement in _table_grants(Warehouse(cdm, vocab, etl, suffix)):
            connection.execute(statement)


def _are_installed(connection: psycopg.Connection, warehouse: Warehouse) -> bool:
    """Whether the roles exist and were given this warehouse."""
    row = connection.execute(
        "SELECT bool_and(role.oid IS NOT NULL AND has_schema_privilege(role.oid, space.oid, 'USAGE'))"
        " FROM unnest(%s::text[], %s::text[]) AS required (role, schema)"
        " LEFT JOIN pg_roles AS role ON role.rolname = required.role"
        " LEFT JOIN pg_namespace AS space ON space.nspname = required.schema",
        ([warehouse.role(name) for name in ROLES], [warehouse.cdm, *3 * (warehouse.etl,)]),
    ).fetchone()
    return bool(row and row[0])


def _refuse_unknown(connection: psycopg.Connection, warehouse: Warehouse, role: RoleName, user: str) -> None:
    names = {
        row[0]
        for row in connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", ([warehouse.role(role), user],)
        ).fetchall()
    }
    if warehouse.role(role) not in names:
        raise WarehouseError(f"There is no role {warehouse.role(role)} yet.", "`epic-omop db init` makes it.")
    if user not in names:
        create = sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(user)).as_string(connection)
        raise UsageError(f"The server has no user {user}.", f"Make one first: {create}; with \\password in psql.")


def _statements(warehouse: Warehouse) -> list[str]:
    return [*_role_statements(warehouse), _ownership(warehouse), *_table_grants(warehouse)]


def _role_statements(warehouse: Warehouse) -> Iterator[str]:
    """The roles, and what they may do in the database and its schemas."""
    for name in ROLES:
        yield (
            f"DO $$ BEGIN CREATE ROLE {_quoted(warehouse.role(name))} NOLOGIN;"
            " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
    reader, steward, auditor, etl = (_quoted(warehouse.role(name)) for name in ROLES)
    # Tables can be given to a role by its members only. Superusers need not be one.
    yield (
        f"DO $$ BEGIN IF NOT pg_has_role(current_user, {_literal(warehouse.role('omop_etl'))}, 'USAGE')"
        f" THEN EXECUTE format('GRANT {etl} TO %I', current_user); END IF; END $$"
    )
    cdm, vocab, own = (_quoted(name) for name in (warehouse.cdm, warehouse.vocab, warehouse.etl))
    yield f"GRANT USAGE, CREATE ON SCHEMA {', '.join(map(_quoted, warehouse.schemas))} TO {etl}"
    yield f"GRANT USAGE ON SCHEMA {cdm}, {vocab} TO {reader}"
    yield f"GRANT USAGE ON SCHEMA {vocab} TO {steward}"
    yield f"GRANT USAGE ON SCHEMA {own} TO {steward}, {auditor}"
    # A release of the vocabulary is loaded into a schema of its own, which takes the name of the active one afterwards.
    yield (
        f"DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {etl}', current_database());"
        f" ALTER SCHEMA {vocab} OWNER TO {etl}; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$"
    )
    yield (  # everyone has these rights unless the database's owner, who alone can give them, has taken them away
        f"DO $$ BEGIN EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO {reader}, {steward}, {auditor}, {etl}',"
        " current_database()); EXCEPTION WHEN insufficient_privilege THEN NULL; END $$"
    )


def _ownership(warehouse: Warehouse) -> str:
    """Give our tables, views and functions to omop_etl, and the access log to whoever runs this.

    Who owned them before becomes a member: what loaded yesterday loads tomorrow.
    """
    etl, own = _literal(warehouse.role("omop_etl")), _literal(warehouse.etl)
    log = ", ".join(map(_literal, LOG_RELATIONS))
    sequences = filter(None, map(sequence_name, TABLES))
    ours = ", ".join(map(_literal, (*TABLES, *sequences)))
    return f"""DO $$
DECLARE thing record; former text;
BEGIN
    FOR former IN SELECT DISTINCT owner.rolname FROM pg_class AS relation
        JOIN pg_namespace AS space ON space.oid = relation.relnamespace JOIN pg_roles AS owner ON owner.oid = relation.relowner
        WHERE space.nspname = {own} AND relation.relkind IN ('r', 'v') AND NOT owner.rolsuper
        AND NOT pg_has_role(owner.oid, {etl}, 'USAGE')
    LOOP EXECUTE format('GRANT %I TO %I', {etl}, former); END LOOP;
    FOR thing IN SELECT space.nspname, relation.relname, relation.relkind, relation.relname IN ({log}) AND space.nspname = {own}
            AS is_log, relation.relowner
        FROM pg_class AS relation JOIN pg_namespace AS space ON space.oid = relation.relnamespace
        WHERE (relation.relkind IN ('r', 'v') OR relation.relkind = 'S' AND NOT EXISTS (SELECT FROM pg_depend AS column_of
                WHERE column_of.objid = relation.oid AND column_of.deptype IN ('a', 'i')))
            AND (space.nspname = {own}
            OR space.nspname IN ({_literal(warehouse.cdm)}, {_literal(warehouse.vocab)}) AND relation.relname IN ({ours}))
    LOOP
        IF thing.is_log AND (thing.relowner = {etl}::regrole
            OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AND thing.relowner <> current_user::regrole)
        THEN EXECUTE format('ALTER TABLE %I.%I OWNER TO %I', thing.nspname, thing.relname, current_user);
        ELSIF NOT thing.is_log AND thing.relowner <> {etl}::regrole
        THEN EXECUTE format('ALTER %s %I.%I OWNER TO %I',
            CASE thing.relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
            thing.nspname, thing.relname, {etl});
        END IF;
    END LOOP;
    FOR thing IN SELECT routine.oid::regprocedure::text AS name, routine.proname IN ({", ".join(map(_literal, _LOG_FUNCTIONS))})
            AS is_log, routine.proowner
        FROM pg_proc AS routine JOIN pg_namespace AS space ON space.oid = routine.pronamespace WHERE space.nspname = {own}
    LOOP
        IF thing.is_log AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
            AND thing.proowner <> current_user::regrole
        THEN EXECUTE format('ALTER FUNCTION %s OWNER TO %I', thing.name, current_user);
        ELSIF NOT thing.is_log AND thing.proowner <> {etl}::regrole
        THEN EXECUTE format('ALTER FUNCTION %s OWNER TO %I', thing.name, {etl});
        END IF;
    END LOOP;
END $$"""


def _table_grants(warehouse: Warehouse) -> list[str]:
    """Rights on the tables that are there, as far as this user owns them, and on those that it or omop_etl will make."""
    reader, steward, auditor, etl = (warehouse.role(name) for name in ROLES)
    own = warehouse.etl
    read = [
        *((schema, None, "SELECT", reader) for schema in (warehouse.cdm, warehouse.vocab)),
        (warehouse.vocab, None, "SELECT", steward),
        *((own, name, "SELECT", steward) for name in _STEWARD_READS),
        (own, "export_job", f"SELECT ({', '.join(_STEWARD_COLUMNS)})", steward),
        *((own, name, "SELECT, INSERT, UPDATE, DELETE", steward) for name in _STEWARD_WRITES),
        *((own, name, "SELECT", role) for name in LOG_RELATIONS for role in (auditor, etl)),
        *((own, "access_log", "INSERT", warehouse.role(name)) for name in _LOG_WRITERS),
    ]
    sequences = [
        *((own, f"{name}%", "USAGE", steward) for name in _STEWARD_WRITES),
        *((own, "access_log_id_seq", "USAGE", warehouse.role(name)) for name in _LOG_WRITERS),
    ]
    future = [(warehouse.cdm, reader), (warehouse.vocab, reader), (warehouse.vocab, steward)]
    defaults = [
        f"ALTER DEFAULT PRIVILEGES{maker} IN SCHEMA {_quoted(schema)} GRANT SELECT ON TABLES TO {_quoted(role)};"
        for maker in ("", f" FOR ROLE {_quoted(etl)}")
        for schema, role in future
    ]
    member = f"IF pg_has_role(current_user, {_literal(etl)}, 'MEMBER') THEN"
    return [
        _grant_block(read, "relation.relkind IN ('r', 'v', 'm', 'p')", "TABLE"),
        _grant_block(sequences, "relation.relkind = 'S'", "SEQUENCE"),
        f"DO $$ BEGIN {member} {' '.join(defaults)} END IF; END $$",
    ]


def _grant_block(grants: Sequence[tuple[str, str | None, str, str]], kind: str, word: str) -> str:
    """`grants`: schema, relation (LIKE; None: all), privileges, role. Only what this user owns can be granted by it, and
    a relation that is not there yet is passed over."""
    values = ",\n        ".join(
        f"({_literal(schema)}, {_literal((name or '%').replace('_', chr(92) + '_'))}, {_literal(privileges)}, {_literal(role)})"
        for schema, name, privileges, role in grants
    )
    return f"""DO $$
DECLARE thing record;
BEGIN
    FOR thing IN SELECT space.nspname, relation.relname, required.privileges, required.role
        FROM (VALUES {values}) AS required (schema, name, privileges, role)
        JOIN pg_namespace AS space ON space.nspname = required.schema
        JOIN pg_class AS relation ON relation.relnamespace = space.oid AND relation.relname LIKE required.name
        WHERE {kind} AND pg_has_role(relation.relowner, 'USAGE')
    LOOP EXECUTE format('GRANT %s ON {word} %I.%I TO %I', thing.privileges, thing.nspname, thing.relname, thing.role);
    END LOOP;
END $$"""


def _grant_statements(database: str, warehouse: Warehouse, role: RoleName, user: str) -> list[str]:
    """What omop_etl makes must be its own, whichever member makes it: its members work as it, in this database."""
    name, member = _quoted(warehouse.role(role)), _quoted(user)
    statements = [f"GRANT {name} TO {member}"]
    if role == "omop_etl":
        statements.append(f"ALTER ROLE {member} IN DATABASE {_quoted(database)} SET role = {name}")
    return statements


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None)
