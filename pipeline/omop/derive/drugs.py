"""Drugs: which, from when to when, by which route."""

from __future__ import annotations

from typing import Literal

import orjson
import polars as pl

from pipeline.omop.derive.base import Derivation, ending, starting, used, with_visit_period


def medication(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The code of the referenced Medication where the request has none; else the reference's display as text."""
    wanted = frame.filter(pl.col("code").is_null() & pl.col("medication_reference").is_not_null())
    if wanted.is_empty():
        return frame
    by_reference = pl.col("code").is_null() & pl.col("medication_reference").is_not_null()
    frame = frame.with_columns(by_reference.alias("by_reference"))
    found = derivation.facts("medication_code", wanted["medication_reference"].unique())
    numbers = [derivation.sets.add_concept(orjson.loads(value)) for value in found["value"]]
    codes = found.select(pl.col("surrogate_id").alias("medication_reference")).with_columns(
        pl.Series("referenced_code", numbers, dtype=pl.Int32)
    )
    frame = frame.join(codes, on="medication_reference", how="left", maintain_order="left")
    displays = frame.filter(pl.col("code").is_null() & pl.col("referenced_code").is_null())["medication_display"]
    texts = {text: derivation.sets.add_concept({"text": text}) for text in displays.drop_nulls().unique()}
    by_display = pl.col("medication_display").replace_strict(texts, default=None, return_dtype=pl.Int32)
    missing = pl.col("referenced_code").is_null()
    frame = used(frame, "medication_code", "medication_reference", pl.col("by_reference"), missing)
    return frame.with_columns(pl.coalesce("code", "referenced_code", by_display).alias("code"))


_DAYS = {"d": 1, "day": 1, "days": 1, "wk": 7, "week": 7, "weeks": 7}
_DEFAULT_SUPPLY_DAYS = 29
_MOST_SUPPLY_DAYS = 3650


def drug_request_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """drug_exposure end: bounds > days supply > quantity by daily dose > start + 29 for prescriptions only.

    An inpatient order ends by its bounds, else with the visit, else on its first day.
    """
    frame = starting(frame, derivation, "authored_on")
    frame = ending(frame, derivation, "bounds_end", "validity_end")
    frame = derivation.dated(with_visit_period(frame, derivation), "visit_end").drop("visit_end_precision")
    inpatient, reported = (pl.col(name).fill_null(False) for name in ("is_inpatient", "is_reported"))
    discharge = pl.when(pl.col("visit_end_date") >= pl.col("start_date")).then("visit_end_date")
    supply = _whole_days(pl.col("supply_value") * _days_of(pl.col("supply_unit")), "round")
    dose_days = _whole_days(pl.col("quantity") / pl.col("daily_dose"), "ceil")
    usual = pl.when(~reported).then(pl.lit(_DEFAULT_SUPPLY_DAYS, dtype=pl.Int64))
    days = pl.when(~inpatient).then(pl.coalesce(supply - 1, dose_days - 1, usual)).fill_null(0)
    by_days = pl.col("start_date") + pl.duration(days=days)
    return frame.with_columns(
        supply.alias("days_supply"),
        pl.coalesce("end_date", pl.when(inpatient).then(discharge), by_days).alias("end_date"),
    )


def drug_administration_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """From the instant or period in which the drug was given; without an end it ends when it starts."""
    frame = starting(frame, derivation, "effective_datetime", "effective_period_start")
    frame = ending(frame, derivation, "effective_period_end")
    return frame.with_columns(
        pl.coalesce("end_date", "start_date").alias("end_date"),
        pl.coalesce("end_datetime", "start_datetime").alias("end_datetime"),
    )


def drug_dispense_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Handed over, else prepared; the end by the days of supply alone, none are invented. A bare number is of days."""
    frame = starting(frame, derivation, "handed_over", "prepared")
    unit = _days_of(pl.col("supply_unit").fill_null("d"))
    supply = _whole_days(pl.col("supply_value") * unit, "round")
    return frame.with_columns(
        supply.alias("days_supply"),
        (pl.col("start_date") + pl.duration(days=(supply - 1).fill_null(0))).alias("end_date"),
    )


def drug_statement_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The period stated, else when it was stated."""
    frame = starting(frame, derivation, "effective_datetime", "effective_period_start", "date_asserted")
    return ending(frame, derivation, "effective_period_end")


def _days_of(unit: pl.Expr) -> pl.Expr:
    return unit.str.to_lowercase().replace_strict(_DAYS, default=None, return_dtype=pl.Int64)


def _whole_days(days: pl.Expr, rounding: Literal["round", "ceil"]) -> pl.Expr:
    """A number of days as an integer; NULL for what cannot be meant: none, or more than ten years."""
    whole = days.round() if rounding == "round" else days.ceil()
    return pl.when(whole.is_between(1, _MOST_SUPPLY_DAYS)).then(whole).cast(pl.Int64)


def route(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    frame = derivation.resolved(frame, "route", "value", "route")
    return frame.with_columns(pl.col("route_source_code").alias("route_source_value"))


def immunization(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """One day; route by the value map of v3-RouteOfAdministration, else by the vocabulary."""
    frame = starting(frame, derivation, "occurrence")
    frame = derivation.mapped_set(frame, "route", "immunization_route", "route_concept_id")
    frame = derivation.resolved(frame, "route", "value", "resolved_route")
    by_vocabulary = (pl.col("route_concept_id") == 0) & (pl.col("resolved_route_concept_id") != 0)
    frame = frame.with_columns(
        pl.when(by_vocabulary).then(f"resolved_route_{part}").otherwise(f"route_concept_id{end}").alias(f"route_{name}")
        for part, end, name in (("concept_id", "", "concept_id"), ("source_code", "_code", "concept_id_code"))
    )
    return frame.with_columns(
        pl.col("start_date").alias("end_date"),
        pl.col("start_datetime").alias("end_datetime"),
        pl.col("route_concept_id_code").alias("route_source_value"),
    )
