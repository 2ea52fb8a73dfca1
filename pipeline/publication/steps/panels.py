"""Panels and their members, which are resources of their own: rows of a member get the id of the panel's row.

Only where a site's option `panel_row` gives panels without a value a row. Components of one resource are linked by
`references.link_events`. Fact: `panel_member` about the member, left by the panel; of several panels the least counts.
"""

from __future__ import annotations

from omop_schema.cdm import primary_key
from omop_schema.etl import lineage_table_name
from pipeline.publication.context import Publication
from pipeline.publication.steps.references import EVENT_COLUMNS

__all__ = ["link_members"]

#: Tables that panels and members have rows in; of a panel with rows in several the first counts.
_TABLES = ("measurement", "observation")

#: Members whose panel, or who themselves, came, changed or went in this export, and the panel of each now.
_MEMBERS = (
    "CREATE TEMP TABLE panel_member ON COMMIT DROP AS"
    " SELECT touched.member, min(fact.owner_surrogate_id) AS panel FROM ("
    "  SELECT surrogate_id AS member FROM pg_temp.former_fact WHERE name = 'panel_member'"
    "  UNION SELECT fact.surrogate_id FROM reference_value AS fact JOIN pg_temp.changed AS owner"
    "   ON owner.surrogate_id = fact.owner_surrogate_id WHERE fact.name = 'panel_member'"
    "  UNION SELECT fact.surrogate_id FROM reference_value AS fact JOIN pg_temp.changed AS own USING (surrogate_id)"
    "   WHERE fact.name = 'panel_member') AS touched"
    " LEFT JOIN reference_value AS fact ON fact.surrogate_id = touched.member AND fact.name = 'panel_member'"
    " GROUP BY touched.member"
)


def link_members(p: Publication) -> None:
    """Set, move and take away the link of members to their panel. Runs after rows and facts of the export are there."""
    if p.site.mapping.panel_row != "always":
        return
    p.connection.execute(_MEMBERS)
    p.connection.execute("ANALYZE pg_temp.panel_member")
    p.connection.execute(f"CREATE TEMP TABLE panel_row ON COMMIT DROP AS {_panel_rows(p)}")
    for table in _TABLES:
        identifier, field = EVENT_COLUMNS[table]
        own = primary_key(table)
        p.connection.execute(
            f"UPDATE {p.cdm}.{table} AS row SET {identifier} = panel.row_id, {field} = panel.field"
            f" FROM pg_temp.panel_member AS member JOIN {lineage_table_name(table)} AS lineage"
            " ON lineage.surrogate_id = member.member LEFT JOIN pg_temp.panel_row AS panel USING (panel)"
            f" WHERE row.{own} = lineage.row_id AND {_is_own_row(p, table)}"
            f" AND (row.{identifier}, row.{field}) IS DISTINCT FROM (panel.row_id, panel.field)"
        )


def _panel_rows(p: Publication) -> str:
    """Columns panel, row_id, field (concept of the column that holds the id): the first row that is the panel's own."""
    found = " UNION ALL ".join(
        f"SELECT lineage.surrogate_id AS panel, {number} AS place, row.{primary_key(table)} AS row_id,"
        f" {_field(p, table)} AS field FROM pg_temp.panel_member AS member"
        f" JOIN {lineage_table_name(table)} AS lineage ON lineage.surrogate_id = member.panel"
        f" JOIN {p.cdm}.{table} AS row ON row.{primary_key(table)} = lineage.row_id WHERE {_is_own_row(p, table)}"
        for number, table in enumerate(_TABLES)
    )
    return f"SELECT DISTINCT ON (panel) panel, row_id, field FROM ({found}) AS own ORDER BY panel, place, row_id"


def _field(p: Publication, table: str) -> str:
    return (
        f"coalesce((SELECT concept_id FROM {p.vocab}.concept WHERE vocabulary_id = 'CDM'"
        f" AND concept_name = '{table}.{primary_key(table)}'), 0)"
    )


def _is_own_row(p: Publication, table: str) -> str:
    """Not that of a component, which belongs to another row of its own resource (in `table` or another)."""
    identifier, field = EVENT_COLUMNS[table]
    others = " AND ".join(
        f"NOT (row.{field} = {_field(p, other)} AND EXISTS (SELECT FROM {lineage_table_name(other)} AS of_resource"
        f" WHERE of_resource.row_id = row.{identifier} AND of_resource.surrogate_id = lineage.surrogate_id))"
        for other in _TABLES
    )
    return f"(row.{identifier} IS NULL OR ({others}))"
