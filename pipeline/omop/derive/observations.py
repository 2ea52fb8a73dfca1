"""Observations: date, value, unit, range, interpretation."""

from __future__ import annotations

import polars as pl

from pipeline.omop.converters import COMPARATORS
from pipeline.omop.derive.base import Derivation, starting


def observation_date(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    return starting(frame, derivation, "effective_datetime", "effective_instant", "effective_period_start", "issued")


_NUMBER_TEXT = r"^\s*(<=|>=|<|>)?\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*$"


def observation_value(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """value[x], unit, range and interpretation → OMOP value columns.

    A string that is a number, with or without comparator, is parsed ("<0.01"); other types become text. The
    interpretation is the value only where there is no other.
    """
    parts = pl.col("value_string").str.extract_groups(_NUMBER_TEXT)
    number = parts.struct.field("2").cast(pl.Float64, strict=False)
    frame = frame.with_columns(
        pl.when(number.is_finite()).then(number).alias("string_number"),
        pl.when(number.is_finite()).then(parts.struct.field("1")).alias("string_comparator"),
    )
    frame = derivation.resolved(frame, "value_code", "value", "value")
    frame = derivation.resolved(frame, "unit", "unit", "unit")
    frame = derivation.mapped_set(frame, "interpretation", "interpretation", "interpretation_concept_id")
    operators = {text: derivation.constant(name) for text, name in COMPARATORS.items()}
    comparator = pl.coalesce("value_comparator", "string_comparator")
    boolean = pl.col("value_boolean")
    truth = (
        pl.when(boolean)
        .then(pl.lit(derivation.constant("value_true"), dtype=pl.Int64))
        .when(~boolean)
        .then(pl.lit(derivation.constant("value_false"), dtype=pl.Int64))
    )
    has_value = pl.any_horizontal(
        pl.col(
            "value_quantity", "value_integer", "value_string", "value_code", "value_boolean", "value_other"
        ).is_not_null()
    )
    interpretation = pl.when(~has_value).then("interpretation_concept_id")
    text = pl.coalesce("value_string", "value_other", boolean.cast(pl.String))
    return frame.with_columns(
        pl.coalesce("value_quantity", pl.col("value_integer").cast(pl.Float64), "string_number").alias(
            "value_as_number"
        ),
        comparator.replace_strict(operators, default=None, return_dtype=pl.Int64).alias("operator_concept_id"),
        pl.coalesce("value_concept_id", truth, interpretation).alias("value_as_concept_id"),
        pl.coalesce("value_string", "value_other").alias("value_as_string"),
        pl.coalesce(
            "value_source_code", text, pl.when(~has_value).then("interpretation_concept_id_code"), _number_text()
        ).alias("value_source_value"),
        pl.coalesce("unit_source_code", "unit_text").alias("unit_source_value"),
        pl.col("interpretation_concept_id").alias("qualifier_concept_id"),
        pl.col("interpretation_concept_id_code").alias("qualifier_source_value"),
    ).drop("value_source_code")


def _number_text() -> pl.Expr:
    """The number as the source wrote it, with its comparator."""
    number = pl.coalesce(pl.col("value_integer").cast(pl.String), pl.col("value_quantity").cast(pl.String))
    number = number.str.strip_suffix(".0")
    return pl.when(number.is_not_null()).then(pl.col("value_comparator").fill_null("") + number)
