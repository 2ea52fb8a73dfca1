"""Rows of the lineage tables: which resource made which row."""

from __future__ import annotations

import polars as pl

from omop_schema.contact import CONTACT_DATE
from omop_schema.etl import LINEAGE_COLUMNS

__all__ = ["lineage_rows"]


def lineage_rows(rows: pl.DataFrame, export_id: int) -> pl.DataFrame:
    """`LINEAGE_COLUMNS` (all bigint) of rows that this export made, out of their row_id, surrogate_id and row_key, and their
    contact_date (date) where the table has it."""
    contact = [CONTACT_DATE] if CONTACT_DATE in rows.columns else []
    return rows.with_columns(pl.lit(export_id, dtype=pl.Int64).alias("export_id")).select(*LINEAGE_COLUMNS, *contact)
