"""Procedures."""

from __future__ import annotations

import polars as pl

from pipeline.transform.rules.base import Derivation
from pipeline.transform.rules.dates import ending, starting
from pipeline.transform.rules.declaration import dated, looked_up, rule


@rule(
    reads=("performed_datetime", "performed_start", "performed_end", "body_site"),
    writes=(
        dated("start"),
        dated("end"),
        looked_up("modifier", "body_site", by_vocabulary=True),
        "modifier_source_value",
    ),
    dates=("performed_datetime", "performed_start", "performed_end"),
    priorities=("value",),
    options=("implausible_dates",),
)
def procedure(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Date or period; body site → modifier."""
    frame = starting(frame, derivation, "performed_datetime", "performed_start")
    frame = ending(frame, derivation, "performed_end")
    frame = derivation.look_ups.of(frame, "body_site", "modifier", purpose="value")
    return frame.with_columns(pl.col("modifier_source_code").alias("modifier_source_value"))


@rule(
    reads=("started",),
    writes=(dated("start"),),
    dates=("started",),
)
def imaging_date(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """An imaging study has a start only."""
    return starting(frame, derivation, "started")
