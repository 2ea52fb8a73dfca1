"""What belongs to vocabulary tables apart from their rows: keys, indices, triggers, owners, grants, read from the catalogue.

Fresh tables get what the active ones have, so that an index or a grant of a customer's own goes over with each release.
The functions take a connection in a transaction whose search_path is pg_catalog (`plain_names`): the catalogue then writes
every name with its schema.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import psycopg
from psycopg import sql

from omop_schema import cdm

__all__ = [
    "add_foreign_keys",
    "add_keys",
    "complete_tables",
    "copy_grants",
    "create_like",
    "installed_tables",
    "plain_names",
]
_OBJECTS = {"r": "TABLES", "S": "SEQUENCES", "f": "FUNCTIONS", "T": "TYPES"}


def plain_names(connection: psycopg.Connection) -> None:
    """Until the transaction ends."""
    connection.execute("SET LOCAL search_path TO pg_catalog")


def installed_tables(connection: psycopg.Connection, schema: str) -> list[str]:
    """The vocabulary tables that a schema has, in their order."""
    rows = connection.execute("SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = %s", (schema,))
    found = {name for (name,) in rows}
    return [table for table in cdm.VOCABULARY_TABLES if table in found]


def create_like(connection: psycopg.Connection, active: str, fresh: str, tables: Iterable[str]) -> None:
    """Empty tables in `fresh`, with the columns of those in `active`, without keys."""
    for table in tables:
        connection.execute(
            sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES EXCLUDING STATISTICS)").format(
                sql.Identifier(fresh, table), sql.Identifier(active, table)
            )
        )


def complete_tables(connection: psycopg.Connection, active: str, former: str) -> None:
    """Tables and columns that the active schema has got since `former` was loaded, empty there."""
    present = installed_tables(connection, former)
    missing = [table for table in installed_tables(connection, active) if table not in present]
    create_like(connection, active, former, missing)
    add_keys(connection, active, former, missing)
    rows = connection.execute(
        "SELECT relation.relname, item.attname, format_type(item.atttypid, item.atttypmod)"
        " FROM pg_attribute AS item JOIN pg_class AS relation ON relation.oid = item.attrelid"
        " JOIN pg_namespace AS space ON space.oid = relation.relnamespace"
        " WHERE space.nspname = %(active)s AND relation.relname = ANY(%(tables)s) AND item.attnum > 0"
        " AND NOT item.attisdropped AND NOT EXISTS (SELECT FROM pg_attribute AS own"
        "   JOIN pg_class AS former ON former.oid = own.attrelid JOIN pg_namespace AS place ON place.oid = former.relnamespace"
        "   WHERE place.nspname = %(former)s AND former.relname = relation.relname AND own.attname = item.attname)"
        " ORDER BY item.attnum",
        {"active": active, "former": former, "tables": present},
    ).fetchall()
    for table, column, kind in rows:
        statement = sql.SQL("ALTER TABLE {} ADD COLUMN {} ").format(
            sql.Identifier(former, table), sql.Identifier(column)
        )
        connection.execute(statement + _text(kind))


def add_keys(connection: psycopg.Connection, active: str, fresh: str, tables: Collection[str]) -> None:
    """Keys, indices and triggers as the active tables have them, under their names."""
    constraints = connection.execute(
        "SELECT relation.relname, item.conname, pg_get_constraintdef(item.oid) FROM pg_constraint AS item"
        " JOIN pg_class AS relation ON relation.oid = item.conrelid"
        " JOIN pg_namespace AS space ON space.oid = relation.relnamespace"
        " WHERE space.nspname = %s AND relation.relname = ANY(%s) AND item.contype IN ('p', 'u', 'x')"
        " AND NOT EXISTS (SELECT FROM pg_constraint AS own JOIN pg_namespace AS place ON place.oid = own.connamespace"
        "   WHERE place.nspname = %s AND own.conname = item.conname) ORDER BY 1, 2",
        (active, list(tables), fresh),
    ).fetchall()
    for table, name, definition in constraints:
        connection.execute(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} ").format(sql.Identifier(fresh, table), sql.Identifier(name))
            + _text(definition)
        )
    others = connection.execute(
        "SELECT relation.relname, pg_get_indexdef(item.indexrelid) FROM pg_index AS item"
        " JOIN pg_class AS relation ON relation.oid = item.indrelid"
        " JOIN pg_namespace AS space ON space.oid = relation.relnamespace"
        " WHERE space.nspname = %s AND relation.relname = ANY(%s)"
        " AND NOT EXISTS (SELECT FROM pg_constraint AS own WHERE own.conindid = item.indexrelid AND own.contype <> 'f')"
        " UNION ALL SELECT relation.relname, pg_get_triggerdef(item.oid) FROM pg_trigger AS item"
        " JOIN pg_class AS relation ON relation.oid = item.tgrelid"
        " JOIN pg_namespace AS space ON space.oid = relation.relnamespace"
        " WHERE space.nspname = %s AND relation.relname = ANY(%s) AND NOT item.tgisinternal",
        (active, list(tables), active, list(tables)),
    ).fetchall()
    for table, definition in others:
        connection.execute(_text(_moved(connection, definition, " ON ", active, fresh, table)))


def add_foreign_keys(connection: psycopg.Connection, active: str, fresh: str, tables: Collection[str]) -> None:
    """Foreign keys between the vocabulary tables themselves, where the active ones have them."""
    rows = connection.execute(
        "SELECT relation.relname, target.relname, item.conname, pg_get_constraintdef(item.oid) FROM pg_constraint AS item"
        " JOIN pg_class AS relation ON relation.oid = item.conrelid JOIN pg_class AS target ON target.oid = item.confrelid"
        " JOIN pg_namespace AS space ON space.oid = relation.relnamespace AND space.oid = target.relnamespace"
        " WHERE space.nspname = %s AND relation.relname = ANY(%s) AND target.relname = ANY(%s) AND item.contype = 'f'"
        " ORDER BY 1, 3",
        (active, list(tables), list(tables)),
    ).fetchall()
    for table, target, name, definition in rows:
        connection.execute(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} ").format(sql.Identifier(fresh, table), sql.Identifier(name))
            + _text(_moved(connection, definition, " REFERENCES ", active, fresh, target))
        )


def copy_grants(connection: psycopg.Connection, active: str, incoming: str, tables: Collection[str]) -> list[str]:
    """Owner, grants and default grants of the schema and its tables, as the active ones have them now.

    Returns what could not be given, as sentences: this user may lack the right to act for another owner.
    """
    problems: list[str] = []
    owner = _schema_owner(connection, active)
    if owner != _schema_owner(connection, incoming):
        _copy_owner(connection, "SCHEMA", sql.Identifier(incoming), owner, problems)
    _copy_acl(
        connection,
        sql.SQL("SCHEMA {}").format(sql.Identifier(incoming)),
        _schema_acl(connection, active),
        _schema_acl(connection, incoming),
    )
    for table in tables:
        owner, rights = _table_facts(connection, active, table)
        own, present = _table_facts(connection, incoming, table)
        name = sql.Identifier(incoming, table)
        if own != owner:
            _copy_owner(connection, "TABLE", name, owner, problems)
        _copy_acl(connection, sql.SQL("TABLE {}").format(name), rights, present)
        _copy_column_grants(connection, active, incoming, table)
    _copy_default_grants(connection, active, incoming, problems)
    return problems


def _text(text: str) -> sql.SQL:
    """The catalogue's own text, quoted by PostgreSQL."""
    return sql.SQL(text.replace("{", "{{").replace("}", "}}"))


def _moved(connection: psycopg.Connection, definition: str, word: str, before: str, after: str, table: str) -> str:
    """The definition with its table in another schema: the first place where it stands after this word."""
    names = connection.execute("SELECT format('%%I.%%I', %s::text, %s::text)", (before, table)).fetchone()
    assert names is not None
    new = connection.execute("SELECT format('%%I.%%I', %s::text, %s::text)", (after, table)).fetchone()
    assert new is not None
    for prefix in (word, f"{word}ONLY "):
        if f"{prefix}{names[0]}" in definition:
            return definition.replace(f"{prefix}{names[0]}", f"{prefix}{new[0]}", 1)
    return definition


_Grant = tuple[str, str, bool]


def _named(connection: psycopg.Connection, acl: str, parameters: tuple[object, ...]) -> set[_Grant]:
    """(grantee as it is written in GRANT, privilege, whether it may be passed on); `acl`: a query of one ACL."""
    rows = connection.execute(
        "SELECT CASE given.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(given.grantee)) END,"
        f" given.privilege_type, given.is_grantable FROM ({acl}) AS item (acl), aclexplode(item.acl) AS given",
        parameters,
    ).fetchall()
    return {(grantee, privilege, passed) for grantee, privilege, passed in rows}


def _schema_acl(connection: psycopg.Connection, schema: str) -> set[_Grant]:
    return _named(connection, "SELECT nspacl FROM pg_namespace WHERE nspname = %s", (schema,))


def _schema_owner(connection: psycopg.Connection, schema: str) -> int:
    row = connection.execute("SELECT nspowner FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone()
    assert row is not None
    return int(row[0])


def _table_facts(connection: psycopg.Connection, schema: str, table: str) -> tuple[int, set[_Grant]]:
    where = (
        " FROM pg_class AS relation JOIN pg_namespace AS space ON space.oid = relation.relnamespace"
        " WHERE space.nspname = %s AND relation.relname = %s"
    )
    row = connection.execute(f"SELECT relation.relowner{where}", (schema, table)).fetchone()
    assert row is not None
    return int(row[0]), _named(connection, f"SELECT relation.relacl{where}", (schema, table))


def _copy_owner(
    connection: psycopg.Connection, word: str, name: sql.Composable, owner: int, problems: list[str]
) -> None:
    """Without a lock where it is the owner already: an automatic vacuum may be at work on fresh tables."""
    row = connection.execute("SELECT pg_get_userbyid(%s)", (owner,)).fetchone()
    assert row is not None
    try:
        with connection.transaction():
            connection.execute(sql.SQL("ALTER " + word + " {} OWNER TO {}").format(name, sql.Identifier(row[0])))
    except psycopg.errors.InsufficientPrivilege:
        problems.append(f"{word.lower()} {name.as_string(connection)} could not be given to its former owner {row[0]}")


def _copy_acl(connection: psycopg.Connection, on: sql.Composable, rights: set[_Grant], present: set[_Grant]) -> None:
    for grantee in sorted({grant[0] for grant in present} - {grant[0] for grant in rights}):
        if rights:  # none at all means: as the owner has them from the beginning
            connection.execute(sql.SQL("REVOKE ALL ON {} FROM ").format(on) + _text(grantee))
    for grantee, privilege, passed in sorted(rights - present):
        option = " WITH GRANT OPTION" if passed else ""
        connection.execute(sql.SQL("GRANT " + privilege + " ON {} TO ").format(on) + _text(grantee + option))


def _copy_column_grants(connection: psycopg.Connection, active: str, incoming: str, table: str) -> None:
    rows = connection.execute(
        "SELECT quote_ident(item.attname), given.privilege_type,"
        " CASE given.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(given.grantee)) END"
        " FROM pg_attribute AS item JOIN pg_class AS relation ON relation.oid = item.attrelid"
        " JOIN pg_namespace AS space ON space.oid = relation.relnamespace, aclexplode(item.attacl) AS given"
        " WHERE space.nspname = %s AND relation.relname = %s AND NOT item.attisdropped",
        (active, table),
    ).fetchall()
    for column, privilege, grantee in rows:
        name = sql.Identifier(incoming, table)
        connection.execute(_text(f"GRANT {privilege} ({column})") + sql.SQL(" ON {} TO ").format(name) + _text(grantee))


def _copy_default_grants(connection: psycopg.Connection, active: str, incoming: str, problems: list[str]) -> None:
    rows = connection.execute(
        "SELECT quote_ident(pg_get_userbyid(item.defaclrole)), item.defaclobjtype::text, given.privilege_type,"
        " CASE given.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(given.grantee)) END"
        " FROM pg_default_acl AS item JOIN pg_namespace AS space ON space.oid = item.defaclnamespace,"
        " aclexplode(item.defaclacl) AS given WHERE space.nspname = %s",
        (active,),
    ).fetchall()
    for maker, kind, privilege, grantee in rows:
        statement = _text(f"ALTER DEFAULT PRIVILEGES FOR ROLE {maker} IN SCHEMA ") + sql.Identifier(incoming)
        statement += _text(f" GRANT {privilege} ON {_OBJECTS[kind]} TO {grantee}")
        try:
            with connection.transaction():
                connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            problems.append(
                f"what {maker} makes later in the vocabulary's schema is not granted to {grantee} by itself"
            )
