"""Patients and deaths."""

from __future__ import annotations

import polars as pl

from pipeline.omop.derive.base import Derivation


def person(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """person: birth as far as known, sex (birthsex first), race and ethnicity (OMB), no identifying value."""
    frame = derivation.dated(frame, "birth_date")
    frame = derivation.mapped(frame, "birth_sex", "gender", "birthsex", "by_birth_sex")
    frame = derivation.mapped(frame, "gender", "gender", "administrative-gender", "by_gender")
    day, precision = pl.col("birth_date_date"), pl.col("birth_date_precision")
    midyear = pl.date(day.dt.year(), 6, 15)  # Themis: year only, no earlier record known
    born = pl.when(precision == 4).then(midyear).otherwise(day)
    by_sex = pl.col("by_birth_sex").fill_null(0)
    omb = "urn:oid:2.16.840.1.113883.6.238"
    frame = frame.with_columns(
        day.dt.year().alias("year_of_birth"),
        pl.when(precision >= 7).then(day.dt.month()).alias("month_of_birth"),
        pl.when(precision >= 10).then(day.dt.day()).alias("day_of_birth"),
        born.cast(pl.Datetime("us")).alias("birth_datetime"),
        pl.when(by_sex != 0).then(by_sex).otherwise(pl.col("by_gender").fill_null(0)).alias("gender_concept_id"),
        pl.when(by_sex != 0)
        .then("birth_sex")
        .otherwise(pl.coalesce("gender", "birth_sex"))
        .alias("gender_source_value"),
        pl.col("deceased_boolean").fill_null(False).alias("issue_death_without_date"),
    )
    frame = _omb_category(frame, derivation, "race", omb, derivation.constant("race_mixed"))
    return _omb_category(frame, derivation, "ethnicity", omb, 0)


def _omb_category(frame: pl.DataFrame, derivation: Derivation, name: str, system: str, several: int) -> pl.DataFrame:
    """`<name>_concept_id` of a list of codes: one known → its concept, several → `several`, none → 0.

    UNK and asked-unknown have no entry in the map and are so ignored beside a valid one.
    """
    codes, key = f"{name}_codes", "row_of_list"
    entries = derivation.value_maps[name].filter(pl.col("system") == system).select("code", "concept_id")
    concepts = (
        frame.with_row_index(key)
        .select(key, pl.col(codes).alias("code"))
        .explode("code")
        .join(entries, on="code", how="inner")
        .unique([key, "concept_id"])
        .group_by(key)
        .agg(pl.col("concept_id").first(), pl.len().alias("known"))
    )
    return (
        frame.with_row_index(key)
        .join(concepts, on=key, how="left", maintain_order="left")
        .with_columns(
            pl.when(pl.col("known") > 1)
            .then(pl.lit(several, dtype=pl.Int64))
            .otherwise(pl.col("concept_id").fill_null(0))
            .alias(f"{name}_concept_id"),
            pl.when(pl.col(codes).list.len() > 0).then(pl.col(codes).list.join("|")).alias(f"{name}_source_value"),
        )
        .drop(key, "known", "concept_id")
    )


def death(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """death: month known → its last day; year only → 31 December (Themis)."""
    frame = derivation.dated(frame, "deceased_datetime")
    day, precision = pl.col("deceased_datetime_date"), pl.col("deceased_datetime_precision")
    last = pl.when(precision == 4).then(pl.date(day.dt.year(), 12, 31)).when(precision == 7).then(day.dt.month_end())
    return frame.with_columns(
        pl.coalesce(last, day).alias("death_date"),
        pl.coalesce(last.cast(pl.Datetime("us")), "deceased_datetime_datetime").alias("death_datetime"),
        pl.lit(derivation.fixed((32817,)), dtype=pl.Int64).alias("death_type_concept_id"),
        pl.col("surrogate_id").alias("person_id"),
    )
