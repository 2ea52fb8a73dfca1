"""Specimens."""

from __future__ import annotations

import polars as pl

from pipeline.transform.rules.base import Derivation
from pipeline.transform.rules.dates import starting
from pipeline.transform.rules.declaration import dated, looked_up, rule


@rule(
    reads=("collected_datetime", "collected_period_start", "received_time", "unit", "unit_text", "body_site"),
    writes=(
        dated("start"),
        looked_up("unit", "unit", by_vocabulary=True),
        "unit_source_value",
        looked_up("anatomic_site", "body_site", by_vocabulary=True),
        "anatomic_site_source_value",
    ),
    dates=("collected_datetime", "collected_period_start", "received_time"),
    priorities=("unit", "value"),
)
def specimen(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """When it was collected, else received, how much, and where it was taken."""
    frame = starting(frame, derivation, "collected_datetime", "collected_period_start", "received_time")
    frame = derivation.look_ups.of(frame, "unit", "unit", purpose="unit")
    frame = derivation.look_ups.of(frame, "body_site", "anatomic_site", purpose="value")
    return frame.with_columns(
        pl.coalesce("unit_source_code", "unit_text").alias("unit_source_value"),
        pl.col("anatomic_site_source_code").alias("anatomic_site_source_value"),
    )
