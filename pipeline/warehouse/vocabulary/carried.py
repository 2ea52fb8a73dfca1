"""What a site has added to the vocabulary tables, and what goes over from one release to the next.

Custom concepts (concept_id ≥ 2,000,000,000, OHDSI's range for them) with their names, relationships, ancestors and
strengths, the rows of the small tables that they need, and source_to_concept_map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import psycopg
from psycopg import sql

from omop_schema import cdm
from pipeline.warehouse.vocabulary.download import SITE_MAP

__all__ = ["FIRST_CUSTOM_CONCEPT", "carried_digest", "carry_over"]

FIRST_CUSTOM_CONCEPT = 2_000_000_000

#: Tables whose rows are of concepts: the columns that name a concept.
_OF_CONCEPTS = {
    "concept": ("concept_id",),
    "concept_relationship": ("concept_id_1", "concept_id_2"),
    "concept_relationship_metadata": ("concept_id_1", "concept_id_2"),
    "concept_ancestor": ("ancestor_concept_id", "descendant_concept_id"),
    "concept_synonym": ("concept_id",),
    "concept_metadata": ("concept_id",),
    "drug_strength": ("drug_concept_id", "ingredient_concept_id"),
    "pack_content": ("pack_concept_id", "drug_concept_id"),
}

#: By what a row is known where the tables have no primary key.
_KEYS = {
    "concept_relationship": ("concept_id_1", "concept_id_2", "relationship_id"),
    "concept_relationship_metadata": ("concept_id_1", "concept_id_2", "relationship_id"),
    "concept_ancestor": ("ancestor_concept_id", "descendant_concept_id"),
    "concept_synonym": ("concept_id", "concept_synonym_name", "language_concept_id"),
    "concept_metadata": ("concept_id",),
    "drug_strength": ("drug_concept_id", "ingredient_concept_id"),
    "pack_content": ("pack_concept_id", "drug_concept_id"),
}

#: Small tables: their key, and where it is named by rows that go over.
_NAMED = {
    "vocabulary": ("vocabulary_id", (("concept", "vocabulary_id"), (SITE_MAP, "source_vocabulary_id"))),
    "domain": ("domain_id", (("concept", "domain_id"),)),
    "concept_class": ("concept_class_id", (("concept", "concept_class_id"),)),
    "relationship": ("relationship_id", (("concept_relationship", "relationship_id"),)),
}


def carry_over(
    connection: psycopg.Connection,
    active: str,
    incoming: str,
    tables: Collection[str],
    *,
    with_map: bool,
    replace: bool,
) -> int:
    """Bring into `incoming` what the site has in `active`; returns the number of rows that came.

    What `incoming` has under the same key stays as it is there, unless `replace`: its custom rows are then of an earlier
    time, and go. `with_map`: also source_to_concept_map, instead of what is there.
    """
    count = 0
    if with_map and SITE_MAP in tables:
        count += _replace_map(connection, active, incoming)
    for table, columns in _OF_CONCEPTS.items():
        if table in tables:
            count += _carry_rows(connection, active, incoming, table, columns, replace=replace)
    for table, (key, uses) in _NAMED.items():
        if table in tables:
            count += _carry_named(connection, active, incoming, table, key, uses)
    return count


def carried_digest(connection: psycopg.Connection, schema: str, tables: Collection[str]) -> str:
    """Hash of a schema's custom concepts. Local maps are no part of a release (`pipeline.warehouse.local_map`)."""
    digest = hashlib.sha256()
    for table, columns in _OF_CONCEPTS.items():
        if table not in tables:
            continue
        where = sql.SQL("WHERE {}").format(_is_custom("item", columns))
        query = sql.SQL(
            "SELECT count(*), md5(coalesce(string_agg(line, chr(10) ORDER BY line COLLATE \"C\"), ''))"
            " FROM (SELECT item::text AS line FROM {} AS item {}) AS lines"
        ).format(sql.Identifier(schema, table), where)
        row = connection.execute(query).fetchone()
        assert row is not None
        if row[0]:
            digest.update(f"{table}\0{row[0]}\0{row[1]}\n".encode())
    return digest.hexdigest()


def _is_custom(alias: str, columns: Collection[str]) -> sql.Composed:
    # A condition for each: the server finds the rows by each column's index.
    conditions = [sql.SQL("{}.{} >= {}").format(sql.Identifier(alias), sql.Identifier(column), sql.Literal(FIRST_CUSTOM_CONCEPT))
                  for column in columns]  # fmt: skip
    return sql.SQL("(") + sql.SQL(" OR ").join(conditions) + sql.SQL(")")


def _columns(connection: psycopg.Connection, schema: str, table: str) -> sql.Composed:
    rows = connection.execute(
        "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
        (sql.Identifier(schema, table).as_string(connection),),
    ).fetchall()
    return sql.SQL(", ").join(sql.Identifier(name) for (name,) in rows)


def _carry_rows(
    connection: psycopg.Connection, active: str, incoming: str, table: str, columns: tuple[str, ...], *, replace: bool
) -> int:
    source, target = sql.Identifier(active, table), sql.Identifier(incoming, table)
    keys = _KEYS.get(table, (cdm.primary_key(table) or columns[0],))
    same = sql.SQL(" AND ").join(sql.SQL("own.{0} = item.{0}").format(sql.Identifier(key)) for key in keys)
    if replace:
        connection.execute(sql.SQL("DELETE FROM {} AS own WHERE {}").format(target, _is_custom("own", columns)))
    names = _columns(connection, active, table)
    cursor = connection.execute(
        sql.SQL(
            "INSERT INTO {} ({}) SELECT {} FROM {} AS item WHERE {} AND NOT EXISTS (SELECT FROM {} AS own WHERE {})"
        ).format(target, names, names, source, _is_custom("item", columns), target, same)
    )
    return cursor.rowcount


def _replace_map(connection: psycopg.Connection, active: str, incoming: str) -> int:
    source, target = sql.Identifier(active, SITE_MAP), sql.Identifier(incoming, SITE_MAP)
    connection.execute(sql.SQL("DELETE FROM {}").format(target))
    names = _columns(connection, active, SITE_MAP)
    return connection.execute(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(target, names, names, source)
    ).rowcount


def _carry_named(
    connection: psycopg.Connection,
    active: str,
    incoming: str,
    table: str,
    key: str,
    uses: tuple[tuple[str, str], ...],
) -> int:
    """Rows that what went over names, or whose own concept is a custom one, and that the release does not have."""
    named = [
        sql.SQL("item.{} IN (SELECT used.{} FROM {} AS used {})").format(
            sql.Identifier(key),
            sql.Identifier(column),
            sql.Identifier(active, user),
            sql.SQL("WHERE {}").format(_is_custom("used", _OF_CONCEPTS[user])) if user in _OF_CONCEPTS else sql.SQL(""),
        )
        for user, column in uses
    ]
    named.append(_is_custom("item", (f"{table}_concept_id",)))
    names = _columns(connection, active, table)
    statement = sql.SQL(
        "INSERT INTO {} ({}) SELECT {} FROM {} AS item WHERE ({})"
        " AND NOT EXISTS (SELECT FROM {} AS own WHERE own.{} = item.{})"
    ).format(
        sql.Identifier(incoming, table),
        names,
        names,
        sql.Identifier(active, table),
        sql.SQL(" OR ").join(named),
        sql.Identifier(incoming, table),
        sql.Identifier(key),
        sql.Identifier(key),
    )
    return connection.execute(statement).rowcount
