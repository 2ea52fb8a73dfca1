"""Which version of the OMOP CDM a database has, by the columns of its tables, and the refusal of another one."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import psycopg
from psycopg import sql

from omop_schema.cdm_fields import CDM_TABLES, fields
from omop_schema.versions import CdmVersion
from pipeline.core.errors import ConfigurationError

__all__ = ["database_version", "refuse_other_version", "version_concept"]

_SETTING = "EPIC_OMOP_CDM_VERSION"
#: "OMOP CDM Version 5.4.0"
_VERSION_CONCEPTS = {CdmVersion.V5_4: 756265}
_QUERY = """
    SELECT count(*) > 0, coalesce(array_agg(DISTINCT mark.version) FILTER (WHERE item.attname IS NOT NULL), '{}')
    FROM unnest(%s::text[], %s::text[], %s::text[]) AS mark (version, table_name, column_name)
    JOIN pg_namespace AS space ON space.nspname = %s
    JOIN pg_class AS relation ON relation.relnamespace = space.oid AND relation.relname = mark.table_name
    LEFT JOIN pg_attribute AS item ON item.attrelid = relation.oid AND item.attname = mark.column_name
    AND NOT item.attisdropped
"""


def database_version(connection: psycopg.Connection, cdm_schema: str) -> CdmVersion | None:
    """The newest version of which the schema's tables have a column that is new in it; None where it has no tables."""
    versions, tables, columns = zip(*_marks(), strict=True)
    row = connection.execute(_QUERY, (list(versions), list(tables), list(columns), cdm_schema)).fetchone()
    assert row is not None
    has_tables, found = row
    if not has_tables:
        return None
    return max((CdmVersion(version) for version in found), key=list(CdmVersion).index, default=CdmVersion.V5_4)


def refuse_other_version(connection: psycopg.Connection, cdm_schema: str, version: CdmVersion) -> None:
    """Raises ConfigurationError for a database of another version than the settings'; one without tables is none's."""
    found = database_version(connection, cdm_schema)
    if found is None or found is version:
        return
    message = f"The database holds the OMOP CDM {found} (schema {cdm_schema}), and {_SETTING} is {version}."
    if found.is_before(version):
        raise ConfigurationError(
            message,
            f"`epic-omop db upgrade` brings the database to {version}; `epic-omop remap` then fills the new columns."
            f" To stay with {found}, set {_SETTING}={found}.",
        )
    raise ConfigurationError(
        message,
        f"A database does not go back to an older version. Set {_SETTING}={found} to continue with this one. For {version},"
        " name a fresh database (EPIC_OMOP_DATABASE_URL, or other names by EPIC_OMOP_CDM_SCHEMA, _VOCAB_SCHEMA and"
        " _ETL_SCHEMA), then `epic-omop db init`, `epic-omop vocabulary load FOLDER` and, the oldest first, `epic-omop"
        " ingest --site NAME --export NUMBER` for the exports in this home's landing (docs/cdm-versions.md).",
    )


def version_concept(connection: psycopg.Connection, vocab_schema: str, version: CdmVersion) -> int:
    """`cdm_version_concept_id` of a version: that of 5.4 is known; a later one is looked up in the loaded vocabulary, the
    latest of its bug-fix releases, and 0 where that has none (yet)."""
    if version in _VERSION_CONCEPTS:
        return _VERSION_CONCEPTS[version]
    query = sql.SQL(
        "SELECT concept_id FROM {} WHERE vocabulary_id = 'CDM' AND concept_class_id = 'CDM' AND standard_concept = 'S'"
        " AND invalid_reason IS NULL AND concept_code ~ %s ORDER BY concept_code DESC LIMIT 1"
    ).format(sql.Identifier(vocab_schema, "concept"))
    row = connection.execute(query, (rf"^CDM v{version.replace('.', '[.]')}([.][0-9]+)?$",)).fetchone()
    return int(row[0]) if row else 0


@cache
def _marks() -> tuple[tuple[str, str, str], ...]:
    """(version, table, column): what tables of the CDM schema have in a version and lack in the one before it."""
    versions = list(CdmVersion)
    return tuple(
        (newer.value, table, field.name)
        for older, newer in pairwise(versions)
        for table in CDM_TABLES
        for field in fields(table, newer)
        if field.name not in {former.name for former in fields(table, older)}
    )
