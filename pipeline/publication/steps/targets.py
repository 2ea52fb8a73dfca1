"""Which row a link leads to: from the surrogate id that a resource refers to, to the row that stands for it now."""

from __future__ import annotations

from omop_schema.cdm import primary_key
from pipeline.publication.context import Publication

__all__ = ["target_rows"]


def target_rows(p: Publication, table: str) -> str:
    """The rows of an entity table as an SQL relation (surrogate_id, row_id, detail_id), to be joined by surrogate_id.

    A sub-encounter stands for its topmost parent's visit and its own detail; of all others detail_id is NULL.
    """
    own = primary_key(table)
    rows = (
        f"SELECT map.surrogate_id, map.row_id, NULL::integer AS detail_id FROM id_map AS map"
        f" JOIN {p.cdm}.{table} AS row ON row.{own} = map.row_id WHERE map.cdm_table = '{table}'"
    )
    if table == "visit_occurrence":
        rows += (
            " UNION ALL SELECT map.surrogate_id, row.visit_occurrence_id, row.visit_detail_id FROM id_map AS map"
            f" JOIN {p.cdm}.visit_detail AS row ON row.visit_detail_id = map.row_id WHERE map.cdm_table = 'visit_detail'"
        )
    return f"({rows})"
