"""Drugs: which, from when to when, by which route. Doses and rates of what was given are in `administrations`."""

from __future__ import annotations

from typing import Literal

import orjson
import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.transform.column_names import issue
from pipeline.transform.rules.base import Derivation, used
from pipeline.transform.rules.dates import ending, given_by_none, starting, visit_dates, with_visit_period
from pipeline.transform.rules.declaration import dated, looked_up, rule, used_fact
from pipeline.transform.rules.strengths import days_of_quantity


@rule(
    reads=("code", "medication_reference", "medication_display", "lacks_contained"),
    writes=(
        "code",
        "by_reference",
        "referenced_code",
        used_fact("medication_code"),
        issue(IssueCode.REFERENCE_CONTAINED, "medication_reference"),
    ),
    facts=("medication_code",),
)
def medication(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The code of the referenced Medication where the request has none; else the reference's display as text.

    A contained medication that is not there, or has no code, is an issue.
    """
    frame = frame.with_columns(
        pl.col("lacks_contained").alias(issue(IssueCode.REFERENCE_CONTAINED, "medication_reference"))
    )
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
_A_YEAR = 365
_MOST_SUPPLY_DAYS = 3650
_LAST_YEAR = 9999
_ROUNDING = 1e-6

#: What `_lengths` reads.
_LENGTH_COLUMNS = (
    *("code", "supply_value", "supply_unit", "quantity", "quantity_unit", "counts_pieces", "daily_dose"),
    *("daily_dose_in_other_unit", "other_dose_unit"),
)
_LENGTH_ISSUES = (
    issue(IssueCode.DAYS_SUPPLY_IMPLAUSIBLE, "supply_value"),
    issue(IssueCode.DAYS_SUPPLY_IMPLAUSIBLE, "quantity"),
)


@rule(
    reads=(
        "authored_on",
        "bounds_start",
        "bounds_start_unusable",
        "bounds_end",
        "bounds_end_unusable",
        "bounds_length",
        "validity_end",
        *_LENGTH_COLUMNS,
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
        issue(IssueCode.QUANTITY_INEXACT, "inexact_supply"),
        issue(IssueCode.QUANTITY_INEXACT, "inexact_bounds"),
        *_LENGTH_ISSUES,
    ),
    dates=(
        *("bounds_start_unusable", "bounds_start", "authored_on", "visit_start"),
        *("bounds_end_unusable", "bounds_end", "bounds_by_length", "validity_end"),
    ),
    facts=("encounter_period",),
    value_maps=("mail_order_pharmacy",),
    priorities=("drug", "unit"),
    options=("implausible_dates", "request_start", "long_supply", "assumed_daily_dose"),
)
def drug_request_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """drug_exposure end: stated end > days supply > quantity by daily dose > start + 29, + 89 by mail order (Themis #57).

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
    frame = _lengths(frame, derivation, asked=pl.col("end_date").is_null() & ~inpatient)
    usual = pl.when(~reported).then(_default_days(frame, derivation, _DEFAULT_SUPPLY_DAYS))
    days = pl.when(~inpatient).then(pl.coalesce(pl.col("days_supply", "days_of_quantity") - 1, usual)).fill_null(0)
    by_days = _days_after_start(days)
    return frame.with_columns(
        *(
            pl.col(name).is_not_null().alias(issue(IssueCode.QUANTITY_INEXACT, name))
            for name in ("inexact_supply", "inexact_bounds")
        ),
        pl.coalesce("end_date", pl.when(inpatient).then(discharge), by_days).alias("end_date"),
    ).drop("has_visit_start", "days_of_quantity")


def _default_days(frame: pl.DataFrame, derivation: Derivation, others: int) -> pl.Expr:
    """Days after the start on which a drug of unknown length ends: by mail order, and of `others`."""
    by_mail = _by_mail(frame, derivation)
    return pl.when(by_mail).then(pl.lit(_MAIL_ORDER_DAYS)).otherwise(pl.lit(others)).cast(pl.Int64)


def _lengths(frame: pl.DataFrame, derivation: Derivation, asked: pl.Expr, bare: str | None = None) -> pl.DataFrame:
    """Adds days_supply, days_of_quantity (of rows without a supply for which `asked` holds), and _LENGTH_ISSUES.

    days_supply is what the source says (Themis #125). Quantity by daily dose: in one unit, else by the drug's strength,
    else by option one piece a day. `bare`: the unit of a supply without one. A length of more than a year makes long
    eras and is left out, by option kept (Themis #76); one that is not positive is left out.
    """
    longest = _MOST_SUPPLY_DAYS if derivation.options.long_supply == "keep" else _A_YEAR
    supply = pl.col("supply_value") * _days_of(pl.coalesce(pl.col("supply_unit"), pl.lit(bare, dtype=pl.String)))
    frame = frame.with_columns(
        _whole_days(supply, "round", longest).alias("days_supply"), supply.is_not_null().alias("has_supply")
    )
    frame = frame.with_columns((asked & pl.col("days_supply").is_null()).fill_null(False).alias("asks_quantity"))
    others = frame.with_columns(
        pl.when("asks_quantity").then("daily_dose_in_other_unit").alias("daily_dose_in_other_unit")
    )
    by_strength = days_of_quantity(others, derivation)
    days = pl.coalesce(pl.col("quantity") / pl.col("daily_dose"), by_strength)
    if derivation.options.assumed_daily_dose == "one_piece":
        has_dose = pl.coalesce("daily_dose", "daily_dose_in_other_unit").is_not_null()
        days = pl.coalesce(days, pl.when(pl.col("counts_pieces") & ~has_dose).then("quantity"))
    frame = frame.with_columns(pl.when("asks_quantity").then(days).alias("quantity_days"))
    frame = frame.with_columns(_whole_days(pl.col("quantity_days"), "ceil", longest).alias("days_of_quantity"))
    strange_supply, strange_quantity = _LENGTH_ISSUES
    return frame.with_columns(
        (pl.col("has_supply") & pl.col("days_supply").is_null()).alias(strange_supply),
        (pl.col("quantity_days").is_not_null() & pl.col("days_of_quantity").is_null()).alias(strange_quantity),
    ).drop("has_supply", "asks_quantity", "quantity_days")


def _by_mail(frame: pl.DataFrame, derivation: Derivation) -> pl.Expr:
    """Whether the pharmacy is one of those that a site lists."""
    found = derivation.look_ups.in_map(frame["pharmacy"], "mail_order_pharmacy")
    by_mail = found.filter(pl.col("meaning") == "mail_order")["code_set"]
    return pl.col("pharmacy").is_in(by_mail.implode()).fill_null(False)


@rule(
    reads=("handed_over", "prepared", *_LENGTH_COLUMNS, "pharmacy"),
    writes=(dated("start"), "days_supply", "end_date", *_LENGTH_ISSUES),
    dates=("handed_over", "prepared"),
    value_maps=("mail_order_pharmacy",),
    priorities=("drug", "unit"),
    options=("long_supply", "assumed_daily_dose"),
)
def drug_dispense_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Handed over, else prepared; the end by the days of supply, else quantity by daily dose, else start + 89 by mail
    order, else the start (Themis #57). A bare number is of days.

    No days of supply are invented: without them days_supply is NULL, whatever the end is. Which pharmacies send by mail
    a site says (value map `mail_order_pharmacy`).
    """
    frame = starting(frame, derivation, "handed_over", "prepared")
    frame = _lengths(frame, derivation, asked=pl.lit(True), bare="d")
    days = pl.coalesce(pl.col("days_supply", "days_of_quantity") - 1, _default_days(frame, derivation, 0))
    return frame.with_columns(_days_after_start(days).alias("end_date")).drop("days_of_quantity")


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


def _whole_days(days: pl.Expr, rounding: Literal["round", "ceil"], longest: int) -> pl.Expr:
    """A number of days as an integer; NULL for what cannot be meant: none, or more than the longest.

    12 tablets at 3 a week are 28 days, although 12 / (3 / 7) is a little more in binary numbers.
    """
    whole = days.round() if rounding == "round" else (days - _ROUNDING).ceil()
    return pl.when(whole.is_between(1, longest)).then(whole).cast(pl.Int64)


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
        issue(IssueCode.DOSE_SUBPOTENT, "is_subpotent"),
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
        pl.col("is_subpotent").fill_null(False).alias(issue(IssueCode.DOSE_SUBPOTENT, "is_subpotent")),
    )
