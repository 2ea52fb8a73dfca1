"""Coverages."""

from __future__ import annotations

import polars as pl

from pipeline.omop.derive.base import Derivation, ending, starting


def coverage(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """payer_plan_period: without an end it lasts until the as-of date of the export; an impossible end is the start."""
    frame = ending(starting(frame, derivation, "start"), derivation, "end")
    frame = derivation.resolved(frame, "plan", "value", "plan")
    as_of = pl.max_horizontal(pl.lit(derivation.as_of), pl.col("start_date"))
    return frame.with_columns(
        pl.col("start_date").alias("payer_plan_period_start_date"),
        pl.when(pl.col("end").is_null())
        .then(as_of)
        .otherwise(pl.coalesce("end_date", "start_date"))
        .alias("payer_plan_period_end_date"),
        pl.col("plan_source_code").alias("plan_source_value"),
    )
