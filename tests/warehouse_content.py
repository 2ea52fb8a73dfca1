"""What a warehouse says, whatever its ids: so that databases with other histories can be compared."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg

from omop_schema.cdm import fields, primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from omop_schema.versions import CdmVersion
from pipeline.publication.ids import LINKS
from pipeline.warehouse.cdm_version import database_version

#: Columns that are shown as the resource of the row to which they lead.
REFERENCES = {
    **LINKS,
    "visit_detail_id": "visit_detail",
    "parent_visit_detail_id": "visit_detail",
    "preceding_visit_occurrence_id": "visit_occurrence",
    "preceding_visit_detail_id": "visit_detail",
}

Content = dict[str, Counter[tuple[Any, ...]]]

#: State that later loads build on. Surrogate ids are hashes of site, type and id: the same in every database.
_ERAS = {
    name: f"SELECT {{person}}, {concept}, {name}_start_date, {name}_end_date, {name.split('_')[0]}_{count}"
    f" FROM cdm.{name} AS row"
    for name, concept, count in (
        ("condition_era", "condition_concept_id", "occurrence_count"),
        ("drug_era", "drug_concept_id", "exposure_count"),
    )
} | {
    "observation_period": "SELECT {person}, observation_period_start_date, observation_period_end_date,"
    " period_type_concept_id FROM cdm.observation_period AS row"
}
_STATE = {
    "resource_state": "SELECT site, resource_type, resource_id, raw_hash_high, raw_hash_low, outcome, reason"
    " FROM resource_state JOIN site_resource_type USING (site_resource_type_id)",
    # Keys of identifiers are other ones in every home: they hang on its secret.
    "reference": "SELECT from_surrogate_id, role, CASE WHEN is_by_identifier THEN NULL ELSE to_surrogate_id END, state"
    " FROM reference",
    "reference_value": "SELECT CASE WHEN name = 'identifier' THEN NULL ELSE surrogate_id END, name, owner_surrogate_id,"
    " value FROM reference_value",
    "row_issue": "SELECT surrogate_id, code, path FROM row_issue",
    "contact_date": "SELECT cdm_table, site, resource_type, resource_id, contact_date FROM row_source"
    " WHERE contact_date IS NOT NULL",
    "dead_letter": "SELECT site, resource_type, resource_id, code, path, raw_hash_high, raw_hash_low, caused_by"
    " FROM dead_letter WHERE state = 'open'",
}
_WAITING = (
    "SELECT own.resource_id, role, to_surrogate_id, reference.state FROM reference"
    " JOIN resource_state AS own ON own.surrogate_id = from_surrogate_id"
    " WHERE reference.state <> 'resolved' AND role LIKE '%.%'"
)
_RELATED = (
    "SELECT one.resource_id, other.resource_id, relationship_concept_id FROM cdm.fact_relationship AS row"
    " JOIN lineage_care_site AS part ON part.row_id = fact_id_1"
    " JOIN lineage_care_site AS whole ON whole.row_id = fact_id_2"
    " JOIN resource_state AS one ON one.surrogate_id = part.surrogate_id"
    " JOIN resource_state AS other ON other.surrogate_id = whole.surrogate_id"
)


def warehouse_content(connection: psycopg.Connection, *, state: bool = True) -> Content:
    """Table → its rows, each with the resources that it comes from, and foreign keys as the resource they lead to.

    `connection` has the search path etl, cdm, vocab. `state` adds what the pipeline remembers beside the rows.
    """
    version = database_version(connection, "cdm")
    assert version is not None
    found = {table: _rows(connection, _cdm_query(table, version)) for table in LINEAGE_TABLES}
    found |= {
        name: _rows(connection, query.format(person=_source("person", "row.person_id")))
        for name, query in _ERAS.items()
    }
    if state:
        found |= {name: _rows(connection, query) for name, query in _STATE.items()}
    return {name: rows for name, rows in found.items() if rows}


def linked_content(connection: psycopg.Connection) -> Content:
    """Rows, the resources that they come from and lead to, parts of care sites, and links that wait."""
    content = warehouse_content(connection, state=False)
    return content | {"waiting": _rows(connection, _WAITING), "related": _rows(connection, _RELATED)}


def differences(reached: Content, fresh: Content) -> list[str]:
    """One line for each row that one has and the other has not."""
    found = []
    for table in sorted({*reached, *fresh}):
        one, other = reached.get(table, Counter()), fresh.get(table, Counter())
        found += [f"{table}: too much {row}" for row in one - other]
        found += [f"{table}: lacks {row}" for row in other - one]
    return found


def _rows(connection: psycopg.Connection, query: str) -> Counter[tuple[Any, ...]]:
    return Counter(connection.execute(query).fetchall())


def _cdm_query(table: str, version: CdmVersion) -> str:
    own = primary_key(table) or "person_id"
    others = [field.name for field in fields(table, version) if field.name != primary_key(table)]
    shown = [
        _source(table, f"row.{own}"),
        *(_shown(name) for name in others),
    ]
    return f"SELECT {', '.join(shown)} FROM cdm.{table} AS row"


def _shown(column: str) -> str:
    if column in REFERENCES:
        return _source(REFERENCES[column], f"row.{column}")
    # The row that a row belongs to is of the same resource: whether there is one says enough.
    return f"(row.{column} IS NOT NULL)::text" if column.endswith("_event_id") else f"row.{column}::text"


def _source(table: str, row_id: str) -> str:
    """The resources of a row, as one text."""
    return (
        "(SELECT string_agg(concat_ws('/', site, resource_type, resource_id), ' ' ORDER BY site, resource_id)"
        f" FROM (SELECT DISTINCT surrogate_id FROM {lineage_table_name(table)} WHERE row_id = {row_id}) AS made"
        " JOIN resource_state USING (surrogate_id) JOIN site_resource_type USING (site_resource_type_id))"
    )
