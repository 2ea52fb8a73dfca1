"""Patients and deaths."""

from __future__ import annotations

import polars as pl

from pipeline.omop.derive.base import Derivation
from pipeline.omop.derive.dates import IMPLAUSIBLE, first_usable, with_birth_date


def person(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """person: birth as far as known, sex (birthsex first), race and ethnicity (OMB), no identifying value."""
    frame = with_birth_date(frame, derivation)
    frame = derivation.mapped(frame, "birth_sex", "gender", "birthsex", "by_birth_sex")
    frame = derivation.mapped(frame, "gender", "gender", "administrative-gender", "by_gender")
    day, precision = pl.col("birth_date_date"), pl.col("birth_date_precision")
    midyear = pl.date(day.dt.year(), 6, 15)  # Themis: year only, no earlier record known
    born = pl.when(precision == 4).then(midyear).otherwise(day)
    by_sex = pl.col("by_birth_sex").fill_null(0)
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
    frame = _omb_category(frame, derivation, "race", derivation.constant("race_mixed"))
    return _omb_category(frame, derivation, "ethnicity", 0)


_OMB = "urn:oid:2.16.840.1.113883.6.238"


def _omb_category(frame: pl.DataFrame, derivation: Derivation, name: str, several: int) -> pl.DataFrame:
    """`<name>_concept_id` of a list of codes: one known → its concept, several → `several`, none → 0.

    UNK and asked-unknown have no entry in the map and are so ignored beside a valid one.
    """
    codes, key = f"{name}_codes", "row_of_list"
    concepts = (
        _known_categories(frame.with_row_index(key), derivation, name, key)
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


def _known_categories(frame: pl.DataFrame, derivation: Derivation, name: str, key: str) -> pl.DataFrame:
    """Columns key, code, concept_id: the distinct races or ethnicities of each row that the map knows, in order."""
    entries = derivation.value_maps[name].filter(pl.col("system") == _OMB).select("code", "concept_id")
    return (
        frame.select(key, pl.col(f"{name}_codes").alias("code"))
        .explode("code")
        .join(entries, on="code", how="inner", maintain_order="left")
        .unique([key, "concept_id"], keep="first", maintain_order=True)
    )


def race_observations(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """One row for each race, and each ethnicity, of a person who has more than one of it (Themis).

    Their date is that of the person's latest visit, which derived/race_dates.sql sets; the as-of date stands in.
    """
    frame = frame.with_row_index("person_row")
    known = pl.concat(_known_categories(frame, derivation, name, "person_row") for name in ("race", "ethnicity"))
    ethnicities = derivation.value_maps["ethnicity"]["code"].unique().implode()
    of_several = known.filter(pl.len().over("person_row", pl.col("code").is_in(ethnicities)) > 1)
    return frame.join(of_several, on="person_row", how="inner", maintain_order="left").with_columns(
        pl.col("surrogate_id").alias("person_id"),
        pl.lit(derivation.as_of).alias("start_date"),
        pl.lit(derivation.as_of).cast(pl.Datetime("us")).alias("start_datetime"),
        pl.col("concept_id").alias("value_as_concept_id"),
        pl.col("code").alias("value_source_value"),
    )


def race_observation(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the resource has rows of `race_observations`; its value says how many."""
    rows = race_observations(frame, derivation).group_by("person_row").len("value")
    return frame.with_row_index("person_row").join(rows, on="person_row", how="inner", maintain_order="left")


def birth_year_only(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the year of a birth of which no more is known; derived/birth_dates.sql looks for records in it."""
    return (
        with_birth_date(frame, derivation)
        .filter(pl.col("birth_date_precision") == 4)
        .with_columns(pl.col("birth_date").alias("value"))
    )


def birth_date(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the birth date, as FHIR writes it, for ages; '' where it is none from which an age could be counted."""
    frame = with_birth_date(frame, derivation)
    known = pl.col("birth_date_date").is_not_null()
    if IMPLAUSIBLE in frame.columns:
        known &= ~pl.col(IMPLAUSIBLE)
    return frame.with_columns(pl.when(known).then("birth_date").otherwise(pl.lit("")).alias("value"))


def death(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """death: month known → its last day; year only → 31 December (Themis)."""
    frame = first_usable(frame, derivation, "deceased_datetime", "deceased_datetime", kind="further")
    day, precision = pl.col("deceased_datetime_date"), pl.col("deceased_datetime_precision")
    last = pl.when(precision == 4).then(pl.date(day.dt.year(), 12, 31)).when(precision == 7).then(day.dt.month_end())
    return frame.with_columns(
        pl.coalesce(last, day).alias("death_date"),
        pl.coalesce(last.cast(pl.Datetime("us")), "deceased_datetime_datetime").alias("death_datetime"),
        pl.lit(derivation.fixed((32817,)), dtype=pl.Int64).alias("death_type_concept_id"),
        pl.col("surrogate_id").alias("person_id"),
    )
