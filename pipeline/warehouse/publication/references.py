"""Links that wait, facts that others use, and who is to be mapped again because a fact changed."""

from __future__ import annotations

import polars as pl

from omop_schema.cdm import polars_schema, primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.warehouse import staging
from pipeline.warehouse.copying import copy_frame, temporary_table
from pipeline.warehouse.ids import LINKS
from pipeline.warehouse.publication.context import LandedLine, Publication

__all__ = ["find_dependents", "references", "relink"]


def relink(p: Publication) -> None:
    """Fill links that waited for a row that is there now."""
    waiting = p.connection.execute(
        "SELECT DISTINCT role FROM reference WHERE state = 'pending' AND to_surrogate_id IN"
        " (SELECT surrogate_id FROM pg_temp.changed)"
    ).fetchall()
    for (role,) in waiting:
        if role not in LINKS:
            continue
        target = LINKS[role]
        for table in LINEAGE_TABLES:
            if role in polars_schema(table) and table != target:
                own = primary_key(table) or "person_id"
                p.connection.execute(
                    f"UPDATE {p.cdm}.{table} AS row SET {role} = map.row_id"
                    f" FROM reference JOIN {lineage_table_name(table)} AS lineage"
                    " ON lineage.surrogate_id = reference.from_surrogate_id"
                    " JOIN id_map AS map ON map.surrogate_id = reference.to_surrogate_id"
                    f" JOIN {p.cdm}.{target} AS target ON target.{primary_key(target)} = map.row_id"
                    f" WHERE reference.state = 'pending' AND reference.role = %s AND map.cdm_table = %s"
                    f" AND row.{own} = lineage.row_id",
                    (role, target),
                )
        p.connection.execute(
            "DELETE FROM reference USING id_map AS map WHERE reference.state = 'pending' AND role = %s"
            " AND map.surrogate_id = to_surrogate_id AND map.cdm_table = %s"
            f" AND EXISTS (SELECT FROM {p.cdm}.{target} AS row WHERE row.{primary_key(target)} = map.row_id)",
            (role, target),
        )


def references(p: Publication) -> None:
    p.connection.execute(
        "DELETE FROM reference USING pg_temp.former AS former WHERE from_surrogate_id = former.surrogate_id"
    )
    p.connection.execute(
        "DELETE FROM reference_value USING pg_temp.former AS former WHERE owner_surrogate_id = former.surrogate_id"
    )
    references = [*p.staged.frames(staging.REFERENCE), *p.pending]
    if references:
        every = pl.concat(references).unique()
        every = every.join(p.dropped, left_on="from_surrogate_id", right_on="surrogate_id", how="anti")
        temporary_table(p.connection, "new_reference", every)
        p.connection.execute(
            "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
            " SELECT from_surrogate_id, role, to_surrogate_id, min(state) FROM pg_temp.new_reference"
            " GROUP BY from_surrogate_id, role, to_surrogate_id ON CONFLICT DO NOTHING"
        )
    for part in p.staged.frames(staging.REFERENCE_VALUE):
        facts = part
        if not p.not_loaded.is_empty():
            lines = p.not_loaded.rename({"surrogate_id": "owner_surrogate_id"})
            facts = part.join(lines, on=["owner_surrogate_id", "file_number", "line"], how="anti")
        facts = facts.drop("file_number", "line").unique(
            ["surrogate_id", "name", "owner_surrogate_id"], keep="last", maintain_order=True
        )
        copy_frame(p.connection, "reference_value", facts)


def find_dependents(p: Publication) -> None:
    """Resources that used a fact of a changed resource and did not come in this export: to be transformed again.

    Their references are pending until that is done: a process that ends before leaves them to the next run. One
    that waits for a resource that has not come stays pending, and out of this.
    """
    p.connection.execute(
        "UPDATE reference SET state = 'pending' FROM pg_temp.changed AS target"
        " WHERE target.surrogate_id = reference.to_surrogate_id AND reference.role <> ALL(%s)"
        " AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = reference.from_surrogate_id)",
        (list(LINKS),),
    )
    rows = p.connection.execute(
        "SELECT DISTINCT state.export_id, state.file_number, state.byte_offset, state.byte_length"
        " FROM reference JOIN resource_state AS state ON state.surrogate_id = reference.from_surrogate_id"
        " JOIN site_resource_type AS kind USING (site_resource_type_id)"
        " WHERE reference.state = 'pending' AND reference.role <> ALL(%s) AND state.outcome = 'loaded'"
        " AND kind.site = %s AND (EXISTS (SELECT FROM pg_temp.changed WHERE surrogate_id = reference.to_surrogate_id)"
        " OR EXISTS (SELECT FROM reference_value AS fact WHERE fact.surrogate_id = reference.to_surrogate_id))"
        " AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = reference.from_surrogate_id)",
        (list(LINKS), p.export.site),
    ).fetchall()
    p.report.dependents = [LandedLine(*row) for row in rows]
