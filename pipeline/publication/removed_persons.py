"""Persons whose row goes, because their Patient was deleted or counts no more: nothing of theirs may stay.

Their resources become `excluded` with the reason `person_removed`, and are forgotten as known lines; until the Patient
is there again, a line of theirs that comes is rejected for want of its person. `etl.reference` remembers under the role
`person_removed` whose they are, so that they are mapped again when the Patient is there.
"""

from __future__ import annotations

from collections import Counter

import psycopg

from omop_schema.cdm import CDM_TABLES, polars_schema, primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name

__all__ = ["PERSON_REMOVED", "remove_moved_events", "remove_rows_of_persons"]

PERSON_REMOVED = "person_removed"

_OF_PERSONS = [table for table in LINEAGE_TABLES if table != "person" and "person_id" in polars_schema(table)]
_DERIVED = [table for table in CDM_TABLES if table not in LINEAGE_TABLES and "person_id" in polars_schema(table)]


def remove_rows_of_persons(connection: psycopg.Connection, cdm_schema: str) -> Counter[str]:
    """Delete the rows of the persons in `pg_temp.removed_person` (row_id, surrogate_id), before theirs; deleted rows by table.

    `connection` has the etl schema on its search_path and is inside the publication's transaction.
    """
    connection.execute("CREATE TEMP TABLE of_removed_person (surrogate_id bigint, patient bigint) ON COMMIT DROP")
    deleted: Counter[str] = Counter()
    for table in reversed(_OF_PERSONS):  # events before the visits that they belong to
        lineage, own = lineage_table_name(table), primary_key(table) or "person_id"
        connection.execute(
            f"WITH gone AS (DELETE FROM {lineage} AS lineage USING {cdm_schema}.{table} AS row, pg_temp.removed_person"
            f" AS person WHERE row.{own} = lineage.row_id AND row.person_id = person.row_id"
            " RETURNING lineage.surrogate_id, person.surrogate_id AS patient)"
            " INSERT INTO pg_temp.of_removed_person SELECT DISTINCT surrogate_id, patient FROM gone"
        )
        deleted[table] = connection.execute(
            f"DELETE FROM {cdm_schema}.{table} AS row USING pg_temp.removed_person AS person"
            " WHERE row.person_id = person.row_id"
        ).rowcount
    for table in _DERIVED:
        connection.execute(
            f"DELETE FROM {cdm_schema}.{table} AS row USING pg_temp.removed_person AS person"
            " WHERE row.person_id = person.row_id"
        )
    _forget_resources(connection)
    return +deleted


def remove_moved_events(connection: psycopg.Connection, cdm_schema: str) -> Counter[str]:
    """Delete the rows of replaced patients that are in `pg_temp.removed_patient` (surrogate_id): they are with their
    survivors. Deleted rows by table; the survivors join `pg_temp.affected_person`.

    `connection` is as above.
    """
    connection.execute("DROP TABLE IF EXISTS pg_temp.of_removed_person")
    connection.execute(
        "CREATE TEMP TABLE of_removed_person ON COMMIT DROP AS SELECT from_surrogate_id AS surrogate_id,"
        " to_surrogate_id AS patient FROM reference JOIN pg_temp.removed_patient AS patient"
        " ON patient.surrogate_id = to_surrogate_id WHERE role = 'person_id'"
    )
    deleted: Counter[str] = Counter()
    for table in reversed(_OF_PERSONS):
        lineage, own = lineage_table_name(table), primary_key(table) or "person_id"
        rows = f"{lineage} AS lineage JOIN pg_temp.of_removed_person AS gone USING (surrogate_id)"
        connection.execute(
            f"INSERT INTO pg_temp.affected_person SELECT DISTINCT row.person_id FROM {rows}"
            f" JOIN {cdm_schema}.{table} AS row ON row.{own} = lineage.row_id ON CONFLICT DO NOTHING"
        )
        deleted[table] = connection.execute(
            f"DELETE FROM {cdm_schema}.{table} AS row USING {rows} WHERE row.{own} = lineage.row_id"
        ).rowcount
        connection.execute(
            f"DELETE FROM {lineage} AS lineage USING pg_temp.of_removed_person AS gone"
            " WHERE lineage.surrogate_id = gone.surrogate_id"
        )
    _forget_resources(connection)
    return +deleted


def _forget_resources(connection: psycopg.Connection) -> None:
    connection.execute("DROP TABLE IF EXISTS pg_temp.belonged")
    connection.execute(
        "CREATE TEMP TABLE belonged ON COMMIT DROP AS SELECT DISTINCT gone.surrogate_id,"
        " coalesce(moved.to_surrogate_id, gone.patient) AS patient FROM pg_temp.of_removed_person AS gone"
        " LEFT JOIN reference AS moved ON moved.from_surrogate_id = gone.surrogate_id AND moved.role = 'person_id'"
    )
    # Neither a line nor a content counts as unchanged: see `pipeline.staging.known_lines`.
    connection.execute(
        "UPDATE resource_state AS state SET outcome = 'excluded', reason = %s, raw_hash_high = 0, raw_hash_low = 0,"
        " content_hash = NULL FROM pg_temp.of_removed_person AS gone WHERE state.surrogate_id = gone.surrogate_id",
        (PERSON_REMOVED,),
    )
    for table, column in (
        ("reference", "from_surrogate_id"),
        ("reference_value", "owner_surrogate_id"),
        ("row_issue", "surrogate_id"),
        ("unmapped_use", "surrogate_id"),
    ):
        connection.execute(
            f"DELETE FROM {table} AS row USING pg_temp.of_removed_person AS gone WHERE row.{column} = gone.surrogate_id"
        )
    connection.execute(
        "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
        " SELECT surrogate_id, %s, patient, 'pending' FROM pg_temp.belonged ON CONFLICT DO NOTHING",
        (PERSON_REMOVED,),
    )
