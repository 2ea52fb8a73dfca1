"""Drugs: which, from when to when, by which route."""

from __future__ import annotations

from typing import Literal

import orjson
import polars as pl

from pipeline.transform.column_names import issue
from pipeline.transform.rules.base import Derivation, used
from pipeline.transform.rules.dates import ending, starting, visit_dates, with_visit_period
from pipeline.transform.rules.declaration import dated, looked_up, rule, used_fact

_STRENGTH = (
    *("amount_value", "amount_unit_concept_id", "numerator_value", "numerator_unit_concept_id"),
    *("denominator_value", "denominator_unit_concept_id"),
)


@rule(
    reads=("code", "medication_reference", "medication_display", "lacks_contained"),
    writes=(
        "code",
        "by_reference",
        "referenced_code",
        used_fact("medication_code"),
        issue("reference_contained", "medication_reference"),
    ),
    facts=("medication_code",),
)
def medication(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The code of the referenced Medication where the request has none; else the reference's display as text.

    A contained medication that is not there, or has no code, is an issue.
    """
    frame = frame.with_columns(pl.col("lacks_contained").alias(issue("reference_contained", "medication_reference")))
    by_reference = pl.col("code").is_null() & pl.col("medication_reference").is_not_null()
    frame = frame.with_columns(by_reference.alias("by_reference"))
    found = derivation.facts("medication_code", frame.filter("by_reference")["medication_reference"].unique())
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
_LAST_YEAR = 9999


@rule(
    reads=(
        "authored_on",
        "bounds_end",
        "bounds_end_unusable",
        "bounds_length",
        "validity_end",
        "supply_value",
        "supply_unit",
        "quantity",
        "daily_dose",
        "is_inpatient",
        "is_said_to_be_reported",
        "is_reported_by_patient",
        "inexact_supply",
        "inexact_bounds",
        "visit_occurrence_id",
    ),
    writes=(
        dated("start"),
        dated("end"),
        "bounds_by_length",
        "days_supply",
        dated("visit_start", keeps_precision=False),
        dated("visit_end", keeps_precision=False),
        used_fact("encounter_period"),
        issue("quantity_inexact", "inexact_supply"),
        issue("quantity_inexact", "inexact_bounds"),
    ),
    dates=("authored_on", "bounds_end_unusable", "bounds_end", "bounds_by_length", "validity_end"),
    facts=("encounter_period",),
    options=("implausible_dates",),
)
def drug_request_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """drug_exposure end: bounds > days supply > quantity by daily dose > start + 29 for prescriptions only.

    Bounds are a period's end or a length from the start. An inpatient order ends by its bounds, else with the visit,
    else on its first day.
    """
    frame = starting(frame, derivation, "authored_on")
    last_day = pl.col("start_date").dt.offset_by(pl.col("bounds_length")).dt.offset_by("-1d")
    frame = frame.with_columns(last_day.dt.to_string("%Y-%m-%d").alias("bounds_by_length"))
    frame = ending(frame, derivation, "bounds_end_unusable", "bounds_end", "bounds_by_length", "validity_end")
    frame = visit_dates(with_visit_period(frame, derivation), derivation)
    inpatient, *reports = (
        pl.col(name).fill_null(False) for name in ("is_inpatient", "is_said_to_be_reported", "is_reported_by_patient")
    )
    reported = pl.any_horizontal(reports)
    by_visit = inpatient & pl.col("end_date").is_null() & pl.col("visit_occurrence_id").is_not_null()
    frame = used(frame, "encounter_period", "visit_occurrence_id", by_visit, pl.col("visit_start").is_null())
    discharge = pl.when(pl.col("visit_end_date") >= pl.col("start_date")).then("visit_end_date")
    supply = _whole_days(pl.col("supply_value") * _days_of(pl.col("supply_unit")), "round")
    dose_days = _whole_days(pl.col("quantity") / pl.col("daily_dose"), "ceil")
    usual = pl.when(~reported).then(pl.lit(_DEFAULT_SUPPLY_DAYS, dtype=pl.Int64))
    days = pl.when(~inpatient).then(pl.coalesce(supply - 1, dose_days - 1, usual)).fill_null(0)
    by_days = _days_after_start(days)
    return frame.with_columns(
        *(
            pl.col(name).is_not_null().alias(issue("quantity_inexact", name))
            for name in ("inexact_supply", "inexact_bounds")
        ),
        supply.alias("days_supply"),
        pl.coalesce("end_date", pl.when(inpatient).then(discharge), by_days).alias("end_date"),
    )


@rule(
    reads=("effective_datetime", "effective_period_start", "effective_period_end"),
    writes=(dated("start"), dated("end")),
    dates=("effective_datetime", "effective_period_start", "effective_period_end"),
    options=("implausible_dates",),
)
def drug_administration_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """From the instant or period in which the drug was given; without an end it ends when it starts."""
    frame = starting(frame, derivation, "effective_datetime", "effective_period_start")
    frame = ending(frame, derivation, "effective_period_end")
    return frame.with_columns(
        pl.coalesce("end_date", "start_date").alias("end_date"),
        pl.coalesce("end_datetime", "start_datetime").alias("end_datetime"),
    )


@rule(
    reads=("code", "dose_value", "dose_unit", "dose_unit_source_value", "dosage_text", "dose_text", "rate_text"),
    writes=(
        "quantity",
        "sig",
        "dose_unit_source_value",
        looked_up("dose_unit", "dose_unit", by_vocabulary=True),
        _STRENGTH,
    ),
    priorities=("drug", "unit"),
)
def administered_quantity(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """quantity of what was given, where the dose's unit fits the drug's strength; else the dose is in sig.

    OHDSI's convention: a quantity counts pieces where the strength is an amount (5 mg of a 5 MG tablet is 1), and is in
    the denominator's unit where it is a concentration (20 mL of 50 MG/ML are 20, and so are 1000 mg). Where a quantity
    is not the dose itself, sig holds that as well and no dose unit stands beside it to be misread.
    """
    frame = derivation.look_ups.of(frame, "dose_unit", "dose_unit", purpose="unit")
    strength = _single_strength(frame, derivation)
    frame = frame.join(strength, on="code", how="left", maintain_order="left")
    dose = pl.when((pl.col("dose_unit_concept_id") > 0) & (pl.col("dose_value") > 0)).then("dose_value")

    def fits(unit: str) -> pl.Expr:
        return (pl.col("dose_unit_concept_id") == pl.col(unit)).fill_null(False)

    pieces = pl.when(fits("amount_unit_concept_id")).then(dose / pl.col("amount_value"))
    of_unit = pl.when(fits("denominator_unit_concept_id")).then(dose)
    content = pl.col("numerator_value") / pl.col("denominator_value").fill_null(1.0)
    by_content = pl.when(fits("numerator_unit_concept_id")).then(dose / content)
    same = of_unit.is_not_null()
    return frame.with_columns(
        pl.coalesce(of_unit, pieces, by_content).alias("quantity"),
        pl.concat_str("dosage_text", pl.when(~same).then("dose_text"), "rate_text", separator="; ", ignore_nulls=True)
        .replace("", None)
        .alias("sig"),
        pl.when(same | pl.coalesce(pieces, by_content).is_null())
        .then("dose_unit_source_value")
        .alias("dose_unit_source_value"),
    )


def _single_strength(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """code, and the strength of its drug: of codes with one standard drug that has one ingredient; of several
    ingredients only the unit of the denominator, where it is the same for all."""
    given = frame.filter(pl.col("dose_value") > 0)["code"].drop_nulls().unique()
    drugs = (
        derivation.resolver.resolve("drug")
        .filter(pl.col("code_set").is_in(given.implode()))
        .filter(pl.len().over("code_set") == 1)
        .select(pl.col("code_set").alias("code"), pl.col("target_concept_id").alias("drug_concept_id"))
    )
    strengths = derivation.strengths(drugs["drug_concept_id"].unique().to_list())
    one = pl.len() == 1
    values = ("amount_value", "numerator_value", "denominator_value")
    units = ("amount_unit_concept_id", "numerator_unit_concept_id")
    by_drug = strengths.group_by("drug_concept_id").agg(
        *(pl.when(one & (pl.col(name).first() > 0)).then(pl.col(name).first()).alias(name) for name in values),
        *(pl.when(one).then(pl.col(name).first()).alias(name) for name in units),
        pl.when(pl.col("denominator_unit_concept_id").n_unique() == 1)
        .then(pl.col("denominator_unit_concept_id").first())
        .alias("denominator_unit_concept_id"),
    )
    return drugs.join(by_drug, on="drug_concept_id", how="inner").drop("drug_concept_id")


@rule(
    reads=("handed_over", "prepared", "supply_value", "supply_unit"),
    writes=(dated("start"), "days_supply", "end_date"),
    dates=("handed_over", "prepared"),
)
def drug_dispense_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Handed over, else prepared; the end by the days of supply alone, none are invented. A bare number is of days."""
    frame = starting(frame, derivation, "handed_over", "prepared")
    unit = _days_of(pl.col("supply_unit").fill_null("d"))
    supply = _whole_days(pl.col("supply_value") * unit, "round")
    return frame.with_columns(
        supply.alias("days_supply"),
        _days_after_start((supply - 1).fill_null(0)).alias("end_date"),
    )


@rule(
    reads=("effective_datetime", "effective_period_start", "effective_period_end", "date_asserted"),
    writes=(dated("start"), dated("end")),
    dates=("effective_datetime", "effective_period_start", "effective_period_end", "date_asserted"),
    options=("implausible_dates",),
)
def drug_statement_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The period stated, else when it was stated."""
    frame = starting(frame, derivation, "effective_datetime", "effective_period_start", "date_asserted")
    return ending(frame, derivation, "effective_period_end")


def _days_after_start(days: pl.Expr) -> pl.Expr:
    """NULL beyond the last year that a date has."""
    last = pl.col("start_date") + pl.duration(days=days)
    return pl.when(last.dt.year() <= _LAST_YEAR).then(last)


def _days_of(unit: pl.Expr) -> pl.Expr:
    return unit.str.to_lowercase().replace_strict(_DAYS, default=None, return_dtype=pl.Int64)


def _whole_days(days: pl.Expr, rounding: Literal["round", "ceil"]) -> pl.Expr:
    """A number of days as an integer; NULL for what cannot be meant: none, or more than ten years."""
    whole = days.round() if rounding == "round" else days.ceil()
    return pl.when(whole.is_between(1, _MOST_SUPPLY_DAYS)).then(whole).cast(pl.Int64)


@rule(
    reads=("route",),
    writes=(looked_up("route", "route", by_vocabulary=True), "route_source_value"),
    priorities=("value",),
)
def route(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The route by the vocabulary."""
    frame = derivation.look_ups.of(frame, "route", "route", purpose="value")
    return frame.with_columns(pl.col("route_source_code").alias("route_source_value"))


@rule(
    reads=("occurrence", "recorded", "route", "is_subpotent"),
    writes=(
        dated("start"),
        "end_date",
        "end_datetime",
        looked_up("route", "route", by_map=True, by_vocabulary=True),
        "route_source_value",
        issue("dose_subpotent", "is_subpotent"),
    ),
    dates=("occurrence", "recorded"),
    value_maps=("immunization_route",),
    priorities=("value",),
)
def immunization(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """One day: of the dose, else when it was recorded (a text may say when it was given).

    Route by the value map of v3-RouteOfAdministration, else by the vocabulary.
    """
    frame = starting(frame, derivation, "occurrence", "recorded")
    frame = derivation.look_ups.of(frame, "route", "route", value_map="immunization_route", purpose="value")
    return frame.with_columns(
        pl.col("start_date").alias("end_date"),
        pl.col("start_datetime").alias("end_datetime"),
        pl.col("route_source_code").alias("route_source_value"),
        pl.col("is_subpotent").fill_null(False).alias(issue("dose_subpotent", "is_subpotent")),
    )
