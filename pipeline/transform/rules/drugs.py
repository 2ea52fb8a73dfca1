"""Drugs: which, from when to when, by which route."""

from __future__ import annotations

from typing import Literal

import orjson
import polars as pl

from pipeline.transform.column_names import issue
from pipeline.transform.rules.base import Derivation, used
from pipeline.transform.rules.dates import ending, given_by_none, starting, visit_dates, with_visit_period
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
_MAIL_ORDER_DAYS = 89
_MOST_SUPPLY_DAYS = 3650
_LAST_YEAR = 9999


@rule(
    reads=(
        "authored_on",
        "bounds_start",
        "bounds_start_unusable",
        "bounds_end",
        "bounds_end_unusable",
        "bounds_length",
        "validity_end",
        "supply_value",
        "supply_unit",
        "quantity",
        "daily_dose",
        "pharmacy",
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
        "verbatim_end_date",
        "days_supply",
        dated("visit_start", keeps_precision=False),
        dated("visit_end", keeps_precision=False),
        used_fact("encounter_period"),
        issue("quantity_inexact", "inexact_supply"),
        issue("quantity_inexact", "inexact_bounds"),
    ),
    dates=(
        *("bounds_start_unusable", "bounds_start", "authored_on", "visit_start"),
        *("bounds_end_unusable", "bounds_end", "bounds_by_length", "validity_end"),
    ),
    facts=("encounter_period",),
    value_maps=("mail_order_pharmacy",),
    options=("implausible_dates", "request_start"),
)
def drug_request_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """drug_exposure end: stated end > days supply > quantity by daily dose > start + 29, + 89 by mail order.

    The start is by the option `request_start` that of the dosage's bounds, or authoredOn; the other and the encounter's
    start come after it. Bounds are a period's end or a length from the start; an end that is stated is verbatim as well.
    An inpatient order ends by its bounds, else with the visit, else on its first day; one that is only reported on its
    first day. Which pharmacies send by mail a site says (value map `mail_order_pharmacy`).
    """
    frame = with_visit_period(frame, derivation)
    own = ["bounds_start_unusable", "bounds_start", "authored_on"]
    if derivation.options.request_start == "authored":
        own = ["authored_on", "bounds_start_unusable", "bounds_start"]
    frame = starting(frame, derivation, *own, "visit_start")
    undated = given_by_none("start", own) & pl.col("visit_occurrence_id").is_not_null()
    last_day = pl.col("start_date").dt.offset_by(pl.col("bounds_length")).dt.offset_by("-1d")
    frame = frame.with_columns(last_day.dt.to_string("%Y-%m-%d").alias("bounds_by_length"))
    frame = ending(frame, derivation, "bounds_end_unusable", "bounds_end", "bounds_by_length", "validity_end")
    by_length = pl.col("bounds_end").is_null() & pl.col("bounds_by_length").is_not_null()
    by_length = pl.coalesce(pl.col("end_from") == "bounds_by_length", by_length)
    frame = frame.with_columns(pl.when(~by_length).then("end_date").alias("verbatim_end_date"))
    has_visit_start = pl.col("visit_start").is_not_null()
    frame = visit_dates(frame.with_columns(has_visit_start.alias("has_visit_start")), derivation)
    inpatient, *reports = (
        pl.col(name).fill_null(False) for name in ("is_inpatient", "is_said_to_be_reported", "is_reported_by_patient")
    )
    reported = pl.any_horizontal(reports)
    by_visit = inpatient & pl.col("end_date").is_null() & pl.col("visit_occurrence_id").is_not_null()
    frame = used(frame, "encounter_period", "visit_occurrence_id", by_visit | undated, ~pl.col("has_visit_start"))
    discharge = pl.when(pl.col("visit_end_date") >= pl.col("start_date")).then("visit_end_date")
    supply = _whole_days(pl.col("supply_value") * _days_of(pl.col("supply_unit")), "round")
    dose_days = _whole_days(pl.col("quantity") / pl.col("daily_dose"), "ceil")
    by_mail = (
        pl.when(_by_mail(frame, derivation)).then(pl.lit(_MAIL_ORDER_DAYS)).otherwise(pl.lit(_DEFAULT_SUPPLY_DAYS))
    )
    usual = pl.when(~reported).then(by_mail.cast(pl.Int64))
    days = pl.when(~inpatient).then(pl.coalesce(supply - 1, dose_days - 1, usual)).fill_null(0)
    by_days = _days_after_start(days)
    return frame.with_columns(
        *(
            pl.col(name).is_not_null().alias(issue("quantity_inexact", name))
            for name in ("inexact_supply", "inexact_bounds")
        ),
        supply.alias("days_supply"),
        pl.coalesce("end_date", pl.when(inpatient).then(discharge), by_days).alias("end_date"),
    ).drop("has_visit_start")


def _by_mail(frame: pl.DataFrame, derivation: Derivation) -> pl.Expr:
    """Whether the pharmacy is one of those that a site lists."""
    found = derivation.look_ups.in_map(frame["pharmacy"], "mail_order_pharmacy")
    by_mail = found.filter(pl.col("meaning") == "mail_order")["code_set"]
    return pl.col("pharmacy").is_in(by_mail.implode()).fill_null(False)


@rule(
    reads=("effective_datetime", "effective_period_start", "effective_period_end"),
    writes=(dated("start"), dated("end"), "verbatim_end_date"),
    dates=("effective_datetime", "effective_period_start", "effective_period_end"),
    options=("implausible_dates",),
)
def drug_administration_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """From the instant or period in which the drug was given; without an end it ends when it starts."""
    frame = starting(frame, derivation, "effective_datetime", "effective_period_start")
    frame = ending(frame, derivation, "effective_period_end")
    return frame.with_columns(
        pl.col("end_date").alias("verbatim_end_date"),
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
    reads=("handed_over", "prepared", "supply_value", "supply_unit", "quantity", "daily_dose"),
    writes=(dated("start"), "days_supply", "end_date"),
    dates=("handed_over", "prepared"),
)
def drug_dispense_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Handed over, else prepared; the end by the days of supply, else quantity by daily dose. A bare number is of days.

    No days of supply are invented: without them days_supply is NULL, whatever the end is.
    """
    frame = starting(frame, derivation, "handed_over", "prepared")
    unit = _days_of(pl.col("supply_unit").fill_null("d"))
    supply = _whole_days(pl.col("supply_value") * unit, "round")
    dose_days = _whole_days(pl.col("quantity") / pl.col("daily_dose"), "ceil")
    return frame.with_columns(
        supply.alias("days_supply"),
        _days_after_start((pl.coalesce(supply, dose_days) - 1).fill_null(0)).alias("end_date"),
    )


@rule(
    reads=("effective_datetime", "effective_period_start", "effective_period_end", "date_asserted"),
    writes=(dated("start"), dated("end"), "verbatim_end_date"),
    dates=("effective_datetime", "effective_period_start", "effective_period_end", "date_asserted"),
    options=("implausible_dates",),
)
def drug_statement_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The period stated, else when it was stated; its end is verbatim as well."""
    frame = starting(frame, derivation, "effective_datetime", "effective_period_start", "date_asserted")
    frame = ending(frame, derivation, "effective_period_end")
    return frame.with_columns(pl.col("end_date").alias("verbatim_end_date"))


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
