"""Merged patients: `Patient.link` of type replaced-by moves events to the survivor, and back when the link goes.

Whose events were moved is kept in `etl.reference` under the role `person_id`: from the event's resource to the patient
to whom it belongs by its own words. The replaced patient has no row in person or death meanwhile; its id is kept.
"""

from __future__ import annotations

import polars as pl

from omop_schema.cdm import polars_schema, primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.publication.context import Publication
from pipeline.publication.link_roles import LINK_ROLES
from pipeline.warehouse.copying import temporary_table

__all__ = ["move_events", "with_survivors"]

#: Tables whose rows follow a survivor.
_EVENT_TABLES = [
    table for table in LINEAGE_TABLES if "person_id" in polars_schema(table) and table not in {"person", "death"}
]


def with_survivors(p: Publication, rows: pl.DataFrame, table: str) -> pl.DataFrame:
    """Staged rows with the survivor's surrogate id as person_id; a replaced patient's own rows are left out."""
    if p.merged.is_empty() or "person_id" not in rows.columns or table == "person":
        return rows
    if table == "death":
        rows = rows.join(p.merged, left_on="surrogate_id", right_on="from", how="anti", maintain_order="left")
    survivor = p.merged.select(pl.col("from").alias("person_id"), pl.col("last").alias("survivor"))
    rows = rows.join(survivor, on="person_id", how="left", maintain_order="left")
    moved = rows.filter(pl.col("survivor").is_not_null())
    if not moved.is_empty():
        p.pending.append(
            moved.select(
                pl.col("surrogate_id").alias("from_surrogate_id"),
                pl.lit("person_id").alias("role"),
                pl.col("person_id").alias("to_surrogate_id"),
                pl.lit("resolved").alias("state"),
            ).unique(maintain_order=True)
        )
    return rows.with_columns(pl.coalesce("survivor", "person_id").alias("person_id")).drop("survivor")


def move_events(p: Publication) -> None:
    """Bring loaded rows to where this publication's merges say; the rows of persons are there, those of events not."""
    moved_before = p.count("SELECT count(*) FROM (SELECT FROM reference WHERE role = 'person_id' LIMIT 1) AS any_row")
    if p.merged.is_empty() and not moved_before:
        return
    temporary_table(p.connection, "merged_patient", p.merged.select(pl.col("from").alias("patient"), "last"))
    p.connection.execute(
        "CREATE TEMP TABLE merged_person ON COMMIT DROP AS"
        " SELECT patient, own.row_id AS person_id, survivor.row_id AS survivor_id FROM pg_temp.merged_patient"
        " JOIN id_map AS own ON own.surrogate_id = patient AND own.cdm_table = 'person'"
        " JOIN id_map AS survivor ON survivor.surrogate_id = last AND survivor.cdm_table = 'person'"
        f" WHERE EXISTS (SELECT FROM {p.cdm}.person AS row WHERE row.person_id = own.row_id)"
        " OR EXISTS (SELECT FROM pg_temp.changed WHERE changed.surrogate_id = patient)"
    )
    if p.count("SELECT count(*) FROM pg_temp.merged_person"):
        _follow_survivors(p)
    if moved_before:
        _bring_back(p)


def _follow_survivors(p: Publication) -> None:
    """The events of patients who are replaced from now on; then their rows in person and death go."""
    p.connection.execute(
        "INSERT INTO pg_temp.affected_person SELECT person_id FROM pg_temp.merged_person UNION"
        " SELECT survivor_id FROM pg_temp.merged_person ON CONFLICT DO NOTHING"
    )
    for table in _EVENT_TABLES:
        own = primary_key(table)
        p.connection.execute(
            "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
            " SELECT DISTINCT lineage.surrogate_id, 'person_id', merged.patient, 'resolved'"
            f" FROM pg_temp.merged_person AS merged JOIN {p.cdm}.{table} AS row USING (person_id)"
            f" JOIN {lineage_table_name(table)} AS lineage ON lineage.row_id = row.{own} ON CONFLICT DO NOTHING"
        )
        p.connection.execute(
            f"UPDATE {p.cdm}.{table} AS row SET person_id = merged.survivor_id FROM pg_temp.merged_person AS merged"
            " WHERE row.person_id = merged.person_id"
        )
    p.connection.execute(
        "DELETE FROM reference USING pg_temp.merged_person AS merged WHERE from_surrogate_id = merged.patient"
        " AND state = 'pending' AND role = ANY(%s)",
        ([name for name in LINK_ROLES if name.startswith("person.")],),
    )
    for table in ("death", "person"):
        deleted = p.connection.execute(
            f"DELETE FROM {p.cdm}.{table} AS row USING pg_temp.merged_person AS merged"
            " WHERE row.person_id = merged.person_id"
        )
        p.report.rows_deleted[table] += deleted.rowcount
        p.connection.execute(
            f"DELETE FROM {lineage_table_name(table)} AS lineage USING pg_temp.merged_person AS merged"
            " WHERE lineage.surrogate_id = merged.patient"
        )


def _bring_back(p: Publication) -> None:
    """Events that were moved, and whose patient is replaced by another one now, or by none."""
    p.connection.execute(
        "CREATE TEMP TABLE belongs ON COMMIT DROP AS"
        " SELECT reference.from_surrogate_id AS surrogate_id, map.row_id AS person_id"
        " FROM reference LEFT JOIN pg_temp.merged_patient AS merged ON merged.patient = reference.to_surrogate_id"
        " JOIN id_map AS map ON map.cdm_table = 'person'"
        " AND map.surrogate_id = coalesce(merged.last, reference.to_surrogate_id)"
        f" JOIN {p.cdm}.person AS person ON person.person_id = map.row_id"
        " WHERE reference.role = 'person_id'"
    )
    p.connection.execute(
        "INSERT INTO pg_temp.affected_person SELECT DISTINCT person_id FROM pg_temp.belongs ON CONFLICT DO NOTHING"
    )
    for table in _EVENT_TABLES:
        p.connection.execute(
            "INSERT INTO pg_temp.affected_person SELECT DISTINCT row.person_id FROM pg_temp.belongs AS belongs"
            f" JOIN {lineage_table_name(table)} AS lineage USING (surrogate_id)"
            f" JOIN {p.cdm}.{table} AS row ON row.{primary_key(table)} = lineage.row_id"
            " WHERE row.person_id <> belongs.person_id ON CONFLICT DO NOTHING"
        )
        p.connection.execute(
            f"UPDATE {p.cdm}.{table} AS row SET person_id = belongs.person_id FROM pg_temp.belongs AS belongs"
            f" JOIN {lineage_table_name(table)} AS lineage USING (surrogate_id)"
            f" WHERE row.{primary_key(table)} = lineage.row_id AND row.person_id <> belongs.person_id"
        )
    p.connection.execute(
        "DELETE FROM reference WHERE role = 'person_id'"
        " AND NOT EXISTS (SELECT FROM pg_temp.merged_patient AS merged WHERE merged.patient = to_surrogate_id)"
        " AND EXISTS (SELECT FROM lineage_person AS own WHERE own.surrogate_id = to_surrogate_id)"
    )
