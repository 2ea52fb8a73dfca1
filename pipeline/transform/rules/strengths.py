"""How much of an ingredient is in a drug (drug_strength), and what follows from it for quantities and doses.

Only codes count whose concept is one standard drug. Not here: what a source says of dose and rate (`transform.dosages`).
"""

from __future__ import annotations

import polars as pl

from pipeline.transform.rules.base import Derivation

__all__ = ["STRENGTH_COLUMNS", "days_of_quantity", "quantity_of", "unit_concepts", "with_strength"]

#: What `with_strength` adds.
STRENGTH_COLUMNS = (
    *("amount_value", "amount_unit_concept_id", "numerator_value", "numerator_unit_concept_id"),
    *("denominator_value", "denominator_unit_concept_id"),
)

#: Unit concept → the unit that it is a multiple of, and how many of these it is. Others are only like themselves.
_MILLIGRAM, _MILLILITER = 8576, 8587
_UNIT_SIZES = {
    _MILLIGRAM: (_MILLIGRAM, 1.0),
    8504: (_MILLIGRAM, 1000.0),  # g
    9655: (_MILLIGRAM, 1e-3),  # ug
    9600: (_MILLIGRAM, 1e-6),  # ng
    _MILLILITER: (_MILLILITER, 1.0),
    8519: (_MILLILITER, 1000.0),  # L
    9665: (_MILLILITER, 1e-3),  # uL
    8718: (8510, 1.0),  # international units; RxNorm's strengths say units of both
}
_BASES = {unit: base for unit, (base, _) in _UNIT_SIZES.items()}
_SIZES = {unit: size for unit, (_, size) in _UNIT_SIZES.items()}


def with_strength(frame: pl.DataFrame, derivation: Derivation, of: pl.Expr) -> pl.DataFrame:
    """Adds STRENGTH_COLUMNS, and `is_strength_known` (Boolean), to rows for which `of` holds; NULL and false for others.

    The strength is that of a drug with one ingredient; of several ingredients only the unit of the denominator, where it
    is the same for all. Zero is none.
    """
    strength = _single_strength(frame.filter(of)["code"].drop_nulls().unique(), derivation)
    known = strength.with_columns(pl.lit(True).alias("is_strength_known"))
    return frame.join(known, on="code", how="left", maintain_order="left").with_columns(
        pl.col("is_strength_known").fill_null(False)
    )


def _single_strength(codes: pl.Series, derivation: Derivation) -> pl.DataFrame:
    """code and STRENGTH_COLUMNS of its drug."""
    drugs = (
        derivation.resolver.resolve("drug")
        .filter(pl.col("code_set").is_in(codes.implode()))
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
    return drugs.join(by_drug, on="drug_concept_id", how="inner").select("code", *STRENGTH_COLUMNS)


def unit_concepts(units: pl.Series, derivation: Derivation) -> pl.Series:
    """Concept ids of the code sets of units, NULL for none. Nothing is counted as unknown: who asks has its own column."""
    if units.null_count() == len(units):
        return pl.Series(units.name, [None], dtype=pl.Int64).new_from_index(0, len(units))
    known = derivation.resolver.resolve_single("unit").filter(pl.col("target_concept_id") > 0)
    found = units.alias("code_set").to_frame().join(known, on="code_set", how="left", maintain_order="left")
    return found["target_concept_id"].alias(units.name)


def days_of_quantity(frame: pl.DataFrame, derivation: Derivation) -> pl.Series:
    """For how many days (Float64) the quantity lasts where the daily dose is in another unit; NULL where units do not fit.

    Themis #57: quantity by daily dose, with the concentration of drug_strength: 200 mL of 20 mg/mL at 80 mg a day are 200 *
    20 / 80 = 50 days, and 4000 mg at 4 mL a day are 4000 / (4 * 20). Of pieces the strength of one counts: 60 tablets of
    5 mg at 10 mg a day are 30 days. A gram is 1000 mg, whatever the strength.
    """
    asked = pl.col("daily_dose_in_other_unit") > 0
    if not frame.select(asked.any()).item():
        return pl.repeat(None, frame.height, dtype=pl.Float64, eager=True)
    frame = frame.with_columns(
        unit_concepts(frame["quantity_unit"], derivation).alias("quantity_unit_concept_id"),
        unit_concepts(frame["other_dose_unit"], derivation).alias("dose_unit_concept_id"),
    )
    rows = with_strength(frame, derivation, asked)
    quantity = pl.col("quantity") * _size("quantity_unit")
    dose = pl.col("daily_dose_in_other_unit") * _size("dose_unit")
    content, amount = _content(), pl.col("amount_value") * _size("amount_unit")
    quantity_in, dose_in = _base("quantity_unit"), _base("dose_unit")
    by_volume = (quantity_in == _base("denominator_unit")) & (dose_in == _base("numerator_unit"))
    by_content = (quantity_in == _base("numerator_unit")) & (dose_in == _base("denominator_unit"))
    days = pl.coalesce(
        pl.when(quantity_in == dose_in).then(quantity / dose),
        pl.when(by_volume).then(quantity * content / dose),
        pl.when(by_content).then(quantity / (dose * content)),
        pl.when("counts_pieces").then(
            pl.when(dose_in == _base("amount_unit")).then(pl.col("quantity") * amount / dose)
        ),
    )
    return rows.select(pl.when(asked).then(days).alias("days"))["days"]


def quantity_of(given: pl.Expr, unit: str) -> pl.Expr:
    """An amount in `<unit>_concept_id` as a quantity of the drug: in the unit of the denominator, else in pieces; NULL
    where the unit does not fit the strength."""
    size, given_in = _size(unit), _base(unit)
    amount, denominator = pl.col("amount_value") * _size("amount_unit"), _size("denominator_unit")
    return pl.coalesce(
        pl.when(given_in == _base("denominator_unit")).then(given * (size / denominator)),
        pl.when(given_in == _base("amount_unit")).then(given * size / amount),
        pl.when(given_in == _base("numerator_unit")).then(given * size / (_content() * denominator)),
    )


def _content() -> pl.Expr:
    """Ingredient in one denominator, both in the bases of their units."""
    numerator = pl.col("numerator_value") * _size("numerator_unit")
    return numerator / (pl.col("denominator_value").fill_null(1.0) * _size("denominator_unit"))


def _base(unit: str) -> pl.Expr:
    concept = pl.col(f"{unit}_concept_id")
    return concept.replace_strict(_BASES, default=concept, return_dtype=pl.Int64)


def _size(unit: str) -> pl.Expr:
    return pl.col(f"{unit}_concept_id").replace_strict(_SIZES, default=1.0, return_dtype=pl.Float64)
