"""Rows of a warehouse, whatever its row ids: tables in the scratch schema in which links are shown by what they lead to.

For each table of the CDM that the pipeline fills, `actual_<table>` and `expected_<table>`: surrogate_id and row_key of
the resource's row (of derived rows the Patient, and a hash of what distinguishes them), `repeat` (1; more where there
are several), row_id, person (the Patient whose the row is), and the columns. A link is the identity of its target: the
surrogate id of its resource, the key of a location's content, a hash of a detail's resource and row key. 0: a row
without a resource, or of none of those that were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from omop_schema.cdm import fields, polars_schema, primary_key
from omop_schema.contact import CONTACT_DATE, CONTACT_TABLES
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from omop_schema.versions import CdmVersion
from pipeline.publication.derived import KEYS
from pipeline.publication.ids import ENTITY_TABLES, LINKS

__all__ = ["RELATIONS", "TABLES", "Side", "columns_of", "is_link", "make_content"]

#: Tables without lineage whose rows are compared as well, in addition to the derived ones.
RELATIONS = "fact_relationship"

TABLES = (*LINEAGE_TABLES, *KEYS, RELATIONS)

#: Domain of care sites in `fact_relationship`; 0 where the vocabulary lacks it.
_CARE_SITE_DOMAINS = (57, 0)

#: Columns that lead to a row, and its table.
_TARGETS = {
    **LINKS,
    "visit_detail_id": "visit_detail",
    "parent_visit_detail_id": "visit_detail",
    "preceding_visit_occurrence_id": "visit_occurrence",
    "preceding_visit_detail_id": "visit_detail",
}

#: By time, as the derived tables order them; equal ones are distinguished there by their ids, which say nothing.
_ORDER = {
    table: f"concat_ws('|', row.{name}_start_date, coalesce(row.{name}_start_datetime, row.{name}_start_date),"
    f" row.{name}_end_date, coalesce(row.{name}_end_datetime, row.{name}_end_date))"
    for table, name in (("visit_occurrence", "visit"), ("visit_detail", "visit_detail"))
}


@dataclass(frozen=True)
class Side:
    """One of the two warehouses: its schemas, the scratch schema in which its content is put, and how much of it."""

    name: str
    cdm: str
    etl: str
    deep: str
    #: Not only the rows of chosen persons and resources.
    everything: bool
    version: CdmVersion

    def table(self, name: str) -> str:
        return f"{self.deep}.{self.name}_{name}"


def columns_of(table: str, version: CdmVersion) -> list[str]:
    """The columns of a table that are compared: all of the version but its own id, and the day of contact in lineage."""
    if table == RELATIONS:
        return ["domain_concept_id_1", "domain_concept_id_2", "relationship_concept_id"]
    contact = [CONTACT_DATE] if table in CONTACT_TABLES else []
    return [*(field.name for field in fields(table, version) if field.name != primary_key(table)), *contact]


def is_link(column: str) -> bool:
    """Whether a column is shown as the identity of its target."""
    return column in _TARGETS


def make_content(connection: psycopg.Connection, side: Side, vocab: str) -> None:
    """Make a side's tables. Whatever it reads is read in the caller's transaction."""
    _identities(connection, side)
    _orders(connection, side)
    for table in LINEAGE_TABLES:
        _rows(connection, side, table)
        _event_links(connection, side, table, vocab)
    for table in KEYS:
        _derived_rows(connection, side, table)
    _relations(connection, side)


def _identities(connection: psycopg.Connection, side: Side) -> None:
    """`<side>_id_<table>`: row_id, identity. Of `person` only the chosen ones' rows are looked at."""
    for table in ENTITY_TABLES:
        chosen = "" if side.everything else _chosen(side, table)
        _make(
            connection,
            side.table(f"id_{table}"),
            f"SELECT map.row_id, map.surrogate_id AS identity FROM {side.etl}.id_map AS map{chosen}"
            f" WHERE map.cdm_table = '{table}'",
        )
    chosen = "" if side.everything else f" JOIN {side.deep}.deep_resource USING (surrogate_id)"
    _make(
        connection,
        side.table("id_visit_detail"),
        "SELECT DISTINCT ON (row_id) row_id, hashtextextended(surrogate_id || ':' || row_key, 0) AS identity"
        f" FROM {side.etl}.lineage_visit_detail{chosen} ORDER BY row_id, surrogate_id, row_key",
    )
    _make(
        connection,
        side.table("chosen_person"),
        f"SELECT map.row_id AS person_id FROM {side.etl}.id_map AS map JOIN {side.deep}.deep_person"
        " ON patient = map.surrogate_id WHERE map.cdm_table = 'person'",
    )


def _chosen(side: Side, table: str) -> str:
    if table == "location":
        return (
            f" JOIN (SELECT DISTINCT row_key FROM {side.etl}.lineage_location JOIN {side.deep}.deep_resource"
            " USING (surrogate_id)) AS own ON own.row_key = map.surrogate_id"
        )
    return f" JOIN {side.deep}.deep_resource AS own ON own.surrogate_id = map.surrogate_id"


def _orders(connection: psycopg.Connection, side: Side) -> None:
    """`<side>_order_<table>`: row_id, identity, has_twins; of visits and details of the chosen persons."""
    for table, order in _ORDER.items():
        _make(
            connection,
            side.table(f"order_{table}"),
            f"SELECT row.{table}_id AS row_id, CASE WHEN count(*) OVER twins > 1 THEN hashtextextended({order}, 0)"
            f" ELSE coalesce(target.identity, 0) END AS identity, count(*) OVER twins > 1 AS has_twins"
            f" FROM {side.cdm}.{table} AS row{_persons(side)}"
            f" LEFT JOIN {side.table(f'id_{table}')} AS target ON target.row_id = row.{table}_id"
            f" WINDOW twins AS (PARTITION BY row.person_id, {order})",
        )


def _persons(side: Side) -> str:
    return "" if side.everything else f" JOIN {side.table('chosen_person')} AS chosen USING (person_id)"


def _rows(connection: psycopg.Connection, side: Side, table: str) -> None:
    own = primary_key(table) or "person_id"
    lineage = f"{side.etl}.{lineage_table_name(table)} AS lineage"
    if "person_id" in polars_schema(table) or side.everything:
        persons = _persons(side) if "person_id" in polars_schema(table) else ""
        source = f"{side.cdm}.{table} AS row{persons} LEFT JOIN {lineage} ON lineage.row_id = row.{own}"
    else:
        source = (
            f"{side.deep}.deep_resource AS chosen JOIN {lineage} USING (surrogate_id)"
            f" JOIN {side.cdm}.{table} AS row ON row.{own} = lineage.row_id"
        )
    shown, joins = [], []
    if "person_id" in polars_schema(table):
        joins.append(_target(side, "id_person", "person_id", "owner"))
        shown.append("coalesce(owner.identity, 0) AS person")
    else:
        shown.append("NULL::bigint AS person")
    for column in columns_of(table, side.version):
        value, join = _shown(side, table, column)
        shown.append(f"{value} AS {column}")
        joins += join
    _make(
        connection,
        side.table(table),
        f"SELECT lineage.surrogate_id, lineage.row_key, row_number() OVER (PARTITION BY lineage.surrogate_id,"
        f" lineage.row_key ORDER BY row.{own}) AS repeat, row.{own} AS row_id, {', '.join(shown)}"
        f" FROM {source}{''.join(joins)}",
    )


def _shown(side: Side, table: str, column: str) -> tuple[str, list[str]]:
    """How a column is shown, and what is joined for it."""
    if column == CONTACT_DATE:
        return f"lineage.{column}", []
    if column not in _TARGETS:
        return f"row.{column}{'::bigint' if column.endswith('_event_id') else ''}", []
    target = _TARGETS[column]
    found = f"to_{column}"
    shown = f"CASE WHEN row.{column} IS NOT NULL THEN coalesce({found}.identity, 0) END"
    if column.startswith("preceding_"):
        own = f"own_{column}"
        joins = [
            _target(side, f"order_{target}", column, found),
            _target(side, f"order_{target}", f"{table}_id", own),
        ]
        return f"CASE WHEN NOT {own}.has_twins THEN {shown} END", joins
    return shown, [_target(side, f"id_{target}", column, found)]


def _target(side: Side, identities: str, column: str, alias: str) -> str:
    return f" LEFT JOIN {side.table(identities)} AS {alias} ON {alias}.row_id = row.{column}"


def _event_links(connection: psycopg.Connection, side: Side, table: str, vocab: str) -> None:
    """Ids of the row to which a row belongs, whose field concept says in which table it is."""
    column = next((name for name in polars_schema(table) if name.endswith("_event_id")), None)
    if column is None:
        return
    concept = next(name for name in polars_schema(table) if name.endswith("_event_field_concept_id"))
    rows = connection.execute(
        f"SELECT DISTINCT {concept}, concept.concept_name FROM {side.table(table)} AS row"
        f" LEFT JOIN {vocab}.concept AS concept ON concept.concept_id = row.{concept}"
        f" WHERE {column} IS NOT NULL"
    ).fetchall()
    for field, name in rows:
        target = (name or "").partition(".")[0]
        if target not in LINEAGE_TABLES:  # the vocabulary does not know it: that there is a row is all that is known
            connection.execute(
                f"UPDATE {side.table(table)} SET {column} = 0 WHERE {column} IS NOT NULL"
                f" AND {concept} IS NOT DISTINCT FROM %s",
                (field,),
            )
            continue
        connection.execute(
            f"UPDATE {side.table(table)} AS row SET {column} = found.identity FROM (SELECT own.ctid AS place,"
            f" coalesce(min(hashtextextended('{target}:' || lineage.surrogate_id || ':' || lineage.row_key, 0)), 0)"
            f" AS identity FROM {side.table(table)} AS own"
            f" LEFT JOIN {side.etl}.{lineage_table_name(target)} AS lineage ON lineage.row_id = own.{column}"
            f" WHERE own.{column} IS NOT NULL AND own.{concept} = %s GROUP BY own.ctid) AS found"
            " WHERE row.ctid = found.place",
            (field,),
        )


def _derived_rows(connection: psycopg.Connection, side: Side, table: str) -> None:
    columns = [name for name in columns_of(table, side.version) if name != "person_id"]
    keys = [name for name in KEYS[table] if name != "person_id"]
    key = f"hashtextextended(concat_ws('|', {', '.join(_text(name) for name in keys)}), 0)"
    own = primary_key(table)
    _make(
        connection,
        side.table(table),
        f"SELECT coalesce(owner.identity, 0) AS surrogate_id, {key} AS row_key, row_number() OVER (PARTITION BY"
        f" row.person_id, {key} ORDER BY row.{own}) AS repeat, row.{own} AS row_id,"
        f" coalesce(owner.identity, 0) AS person, coalesce(owner.identity, 0) AS person_id,"
        f" {', '.join(f'row.{name}' for name in columns)}"
        f" FROM {side.cdm}.{table} AS row{_persons(side)}{_target(side, 'id_person', 'person_id', 'owner')}",
    )


def _text(column: str) -> str:
    return f"coalesce(row.{column}::text, '')"


def _relations(connection: psycopg.Connection, side: Side) -> None:
    """Between care sites; in a sample those of which both are chosen."""
    kind = "LEFT JOIN" if side.everything else "JOIN"
    targets = "".join(
        f" {kind} {side.table('id_care_site')} AS site_{number} ON site_{number}.row_id = row.fact_id_{number}"
        for number in (1, 2)
    )
    key = "hashtextextended(concat_ws('|', coalesce(site_2.identity, 0), row.relationship_concept_id), 0)"
    _make(
        connection,
        side.table(RELATIONS),
        f"SELECT coalesce(site_1.identity, 0) AS surrogate_id, {key} AS row_key, row_number() OVER (PARTITION BY"
        f" site_1.identity, {key}) AS repeat, row.fact_id_1 AS row_id, NULL::bigint AS person,"
        f" {', '.join(f'row.{name}' for name in columns_of(RELATIONS, side.version))}"
        f" FROM {side.cdm}.{RELATIONS} AS row{targets} WHERE row.domain_concept_id_1 IN {_CARE_SITE_DOMAINS}"
        f" AND row.domain_concept_id_2 IN {_CARE_SITE_DOMAINS}",
    )


def _make(connection: psycopg.Connection, table: str, query: str) -> None:
    connection.execute(f"CREATE UNLOGGED TABLE {table} AS {query}")
    connection.execute(f"ANALYZE {table}")
