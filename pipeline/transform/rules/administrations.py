"""Administrations: when a drug was given, how much of it, at which rate, and what ends an infusion.

An infusion is given at a rate until its order's next action, which is another resource: publication looks at these
together (`publication.steps.infusions`), by the fact that each action leaves.
"""

from __future__ import annotations

import polars as pl

from pipeline.transform.column_names import NOT_MADE
from pipeline.transform.rules.base import Derivation
from pipeline.transform.rules.dates import ending, starting
from pipeline.transform.rules.declaration import dated, looked_up, rule
from pipeline.transform.rules.strengths import STRENGTH_COLUMNS, quantity_of, unit_concepts, with_strength

#: What `_with_quantity` adds besides quantity.
_GIVEN = (
    *("given", "given_unit_concept_id", "is_as_given", "quantity_unit"),
    *(*STRENGTH_COLUMNS, "is_strength_known"),
)


@rule(
    reads=("effective_datetime", "effective_period_start", "effective_period_end"),
    writes=(dated("start"), dated("end"), "verbatim_end_date"),
    dates=("effective_datetime", "effective_period_start", "effective_period_end"),
    options=("implausible_dates",),
)
def drug_administration_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """From the instant or period in which the drug was given; without an end it ends when it starts (Themis #57)."""
    frame = starting(frame, derivation, "effective_datetime", "effective_period_start")
    frame = ending(frame, derivation, "effective_period_end")
    return frame.with_columns(
        pl.col("end_date").alias("verbatim_end_date"),
        pl.coalesce("end_date", "start_date").alias("end_date"),
        pl.coalesce("end_datetime", "start_datetime").alias("end_datetime"),
    )


#: How much was given, and at which rate.
_AMOUNTS = (
    *("code", "dose_value", "is_dose_rate", "rate_an_hour", "rate_unit", "rate_unit_text", "rate_text"),
    "is_rate_zero",
)
#: An amount was given; a dose by time is a rate.
_HAS_DOSE = pl.col("dose_value").is_not_null() & pl.col("is_dose_rate").is_null()
_HAS_RATE = pl.col("rate_text").is_not_null() | pl.col("is_dose_rate").is_not_null()
#: Where the rate itself is 0, or a dose that is one and nothing else.
_STOPS = (
    ~_HAS_DOSE
    & (pl.col("is_rate_zero") | (pl.col("rate_text").is_null() & pl.col("is_dose_rate") & (pl.col("dose_value") == 0)))
).fill_null(False)
_HOUR = 3600 * 1_000_000


@rule(
    reads=(
        *(*_AMOUNTS, "dose_unit", "dose_unit_source_value", "dosage_text", "dose_text"),
        *("start_moment", "end_moment"),
    ),
    writes=(
        "quantity",
        "sig",
        "dose_unit_source_value",
        looked_up("dose_unit", "dose_unit", by_vocabulary=True),
        _GIVEN,
        NOT_MADE,
    ),
    priorities=("drug", "unit"),
)
def administered_quantity(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """quantity of what was given, where the dose's unit fits the drug's strength; else the dose is in sig.

    OHDSI's convention: a quantity counts pieces where the strength is an amount (5 mg of a 5 MG tablet is 1), and is in
    the denominator's unit where it is a concentration (20 mL of 50 MG/ML are 20, and so are 1000 mg). Where a quantity
    is not the dose itself, sig holds that as well and no dose unit stands beside it to be misread. Of what was given at
    a rate, without a dose (a dose by time is a rate), it is rate by time where both ends of that time are known (Themis
    #108); of a drug whose strength the vocabulary does not have, in the rate's unit, which stands beside it. At the rate
    0 nothing is given, and there is no row.
    """
    frame = derivation.look_ups.of(frame, "dose_unit", "dose_unit", purpose="unit")
    hours = (pl.col("end_moment") - pl.col("start_moment")).dt.total_microseconds() / _HOUR
    frame = _with_quantity(frame, derivation, pl.col("rate_an_hour") * hours)
    is_as_given = pl.col("is_as_given")
    of_dose = pl.when(is_as_given | pl.col("quantity").is_null()).then("dose_unit_source_value")
    dose_text = pl.when(~(_HAS_DOSE & is_as_given)).then("dose_text")
    frame = frame.with_columns(
        pl.concat_str("dosage_text", dose_text, "rate_text", separator="; ", ignore_nulls=True)
        .replace("", None)
        .alias("sig"),
        pl.when(_HAS_DOSE | ~_HAS_RATE).then(of_dose).otherwise("quantity_unit").alias("dose_unit_source_value"),
    )
    return frame.with_columns(_STOPS.alias(NOT_MADE)) if frame.select(_STOPS.any()).item() else frame


def _with_quantity(frame: pl.DataFrame, derivation: Derivation, by_rate: pl.Expr) -> pl.DataFrame:
    """Adds _GIVEN and quantity: of the dose (its unit is looked up already), else of an amount in the unit of the rate.

    `is_as_given`: the quantity is the number that was given, in its own unit. `quantity_unit`: that of a rate, where the
    strength is unknown.
    """
    rate_units = unit_concepts(frame["rate_unit"], derivation)
    frame = frame.with_columns(
        pl.when(_HAS_DOSE).then("dose_value").otherwise(by_rate).alias("given"),
        pl.when(_HAS_DOSE).then("dose_unit_concept_id").otherwise(rate_units).alias("given_unit_concept_id"),
    )
    frame = with_strength(frame, derivation, pl.col("given") > 0)
    given = pl.when(pl.col("given") > 0).then("given")
    is_unknown = ~_HAS_DOSE & ~pl.col("is_strength_known") & given.is_not_null()
    return frame.with_columns(
        pl.coalesce(quantity_of(given, "given_unit"), pl.when(is_unknown).then(given)).alias("quantity"),
        (given.is_not_null() & (pl.col("given_unit_concept_id") == pl.col("denominator_unit_concept_id")))
        .fill_null(False)
        .alias("is_as_given"),
        pl.when(is_unknown).then("rate_unit_text").alias("quantity_unit"),
    )


@rule(reads=("dose_value", "is_dose_rate", "rate_text"))
def on_infusion(frame: pl.DataFrame, _derivation: Derivation) -> pl.DataFrame:
    """Fact: of actions at a rate, and of those that say neither rate nor dose, such as a stop. A dose alone is none."""
    return frame.filter(_HAS_RATE | ~_HAS_DOSE)


@rule(
    reads=(*_AMOUNTS, "start_date", "start_datetime", "verbatim_end_date"),
    writes=("value", "quantity", "dose_unit_concept_id", _GIVEN),
    priorities=("drug", "unit"),
)
def infusion_action(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact about the order: when an action on its infusion began, and what is given at its rate until the next.

    JSON: `start` (in the instance's zone), `day` (in the site's), `is_open` (something is given from then on, and its end
    is not stated), `an_hour` (what becomes quantity in an hour) and `unit` (beside it).
    """
    frame = frame.with_columns(pl.lit(None, dtype=pl.Int64).alias("dose_unit_concept_id"))
    frame = _with_quantity(frame, derivation, pl.col("rate_an_hour"))
    is_open = _HAS_RATE & ~_HAS_DOSE & ~_STOPS & pl.col("verbatim_end_date").is_null()
    action = pl.struct(
        pl.col("start_datetime").dt.strftime("%Y-%m-%d %H:%M:%S%.6f").alias("start"),
        pl.col("start_date").dt.strftime("%Y-%m-%d").alias("day"),
        is_open.alias("is_open"),
        pl.when(is_open).then("quantity").alias("an_hour"),
        pl.when(is_open).then("quantity_unit").alias("unit"),
    )
    value = pl.when(pl.col("start_datetime").is_not_null()).then(action.struct.json_encode())
    return frame.with_columns(value.alias("value"))
