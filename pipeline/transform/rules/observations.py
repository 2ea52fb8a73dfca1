"""Observations: date, value, unit, range, interpretation."""

from __future__ import annotations

import polars as pl

from pipeline.fhir.datetimes import parsed
from pipeline.sql_on_fhir.exact_numbers import EXACT_DIGITS, exact_number
from pipeline.transform.column_names import exact, unmapped
from pipeline.transform.converters import COMPARATORS
from pipeline.transform.rules.base import Derivation
from pipeline.transform.rules.dates import starting
from pipeline.transform.rules.declaration import dated, looked_up, rule

_DATES = (
    "effective_datetime",
    "effective_instant",
    "effective_period_start",
    "effective_timing_unusable",
    "effective_timing_event",
    "issued",
)

#: What `observation_value` reads of a value and its unit, what it makes, and the constants that it asks for.
VALUE_COLUMNS = (
    *("value_quantity", "value_integer", "value_string", "value_code", "value_boolean", "value_other"),
    *("value_comparator", "unit", "unit_text"),
)
VALUE_OPTIONAL = (exact("value_quantity"), "value_datetime")
VALUE_WRITES = (
    *("value_as_number", exact("value_as_number"), "value_as_string", "value_as_date"),
    *("value_as_concept_id", "value_source_value", "value_as_source_concept_id"),
    *(name for name in looked_up("value", "value_code", by_vocabulary=True) if name != "value_source_code"),
    *("text_concept_id", "known_text"),
    *("string_number", exact("string_number"), "string_comparator", "operator_concept_id"),
    *looked_up("unit", "unit", by_vocabulary=True),
    "unit_source_value",
    *looked_up("interpretation", "interpretation", by_map=True),
    *("qualifier_concept_id", "qualifier_source_value"),
)
VALUE_CONSTANTS = (*COMPARATORS.values(), "value_true", "value_false")


@rule(
    optional=_DATES,
    writes=(dated("start"),),
    dates=_DATES,
)
def observation_date(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """effectiveDateTime > effectiveInstant > effectivePeriod.start > the first usable event of effectiveTiming > issued.

    Of these, those that the resource has: a DiagnosticReport has no Timing.
    """
    return starting(frame, derivation, *(name for name in _DATES if name in frame.columns))


#: Of what is contained: its own days, then those of what contains it, and the days of writing last.
_CONTAINED_DATES = (
    *("contained_datetime", "contained_instant", "contained_period_start"),
    *_DATES[:-1],
    *("contained_issued", "issued"),
)
#: Statuses of Observation.yaml: those of results, and why others have no row.
_RESULT = frozenset(("final", "amended", "corrected"))
_STATUS_REASONS = {
    "registered": "not_final",
    "preliminary": "not_final",
    "cancelled": "cancelled",
    "entered-in-error": "entered_in_error",
    "unknown": "status_unknown",
}
NO_RESULT = tuple(dict.fromkeys(_STATUS_REASONS.values()))


@rule(
    reads=("contained_status",),
    optional=_CONTAINED_DATES,
    writes=(dated("start"), "exclude_reason"),
    dates=_CONTAINED_DATES,
    options=("preliminary_results",),
)
def contained_result_date(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The date of a contained Observation: its effective[x] > that of the resource that contains it > issued of either.

    One whose status says that it is no result is left out with the reason, as an Observation of its own is excluded.
    """
    kept = _RESULT | {"preliminary"} if derivation.options.preliminary_results == "keep" else _RESULT
    status = pl.col("contained_status")
    reason = status.replace_strict(_STATUS_REASONS, default=_STATUS_REASONS["unknown"], return_dtype=pl.String)
    frame = frame.with_columns(pl.when(~status.is_in(kept).fill_null(False)).then(reason).alias("exclude_reason"))
    return starting(frame, derivation, *(name for name in _CONTAINED_DATES if name in frame.columns))


#: A decimal with or without comparator: groups comparator and number.
NUMBER_TEXT = (
    r"^\s*(<=|>=|<|>|≤|≥)?\s*"
    r"([+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*$"
)
#: A titre: `1:128` is 128. Group: the number.
TITRE_TEXT = r"^\s*(<=|>=|<|>|≤|≥)?\s*1\s*:\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)\s*$"
#: Comparators in one character, which FHIR does not have.
_SIGNS = {"≤": "<=", "≥": ">="}
_VALUE_TEXT = "text"
#: Characters of a date that names its day.
_DAY = 10


@rule(
    reads=(*VALUE_COLUMNS, "interpretation", "is_data_absent"),
    optional=VALUE_OPTIONAL,
    writes=VALUE_WRITES,
    value_maps=("interpretation", "value_text"),
    priorities=("unit", "value"),
    constants=VALUE_CONSTANTS,
    options=("data_absent", "interpretation_as_value"),
)
def observation_value(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """value[x], unit, range and interpretation → OMOP value columns.

    A string that is a number, with or without comparator, is parsed ("<0.01"); other types become text. The
    interpretation is the value only where there is no other, by option also beside a number. A date or a time is
    the value as a date as well, in the site's zone, unless it is of a month or a year. The source concept is that
    of the code in value_source_value. A row without a value whose absence has a reason is dropped under the option
    `data_absent: exclude`.
    """
    has_value = pl.any_horizontal(
        pl.col(
            "value_quantity", "value_integer", "value_string", "value_code", "value_boolean", "value_other"
        ).is_not_null()
    )
    if derivation.options.data_absent == "exclude":
        frame = frame.filter(has_value | ~pl.col("is_data_absent").fill_null(False))
    frame = _with_string_number(frame)
    frame = derivation.look_ups.of(frame, "value_code", "value", purpose="value")
    frame = derivation.look_ups.of(frame, "unit", "unit", purpose="unit")
    frame = derivation.look_ups.of(frame, "interpretation", "interpretation", value_map="interpretation")
    frame = _with_text_concept(frame, derivation)
    operators = {text: derivation.constant(name) for text, name in COMPARATORS.items()}
    comparator = pl.coalesce("value_comparator", "string_comparator")
    boolean = pl.col("value_boolean")
    truth = (
        pl.when(boolean)
        .then(pl.lit(derivation.constant("value_true"), dtype=pl.Int64))
        .when(~boolean)
        .then(pl.lit(derivation.constant("value_false"), dtype=pl.Int64))
    )
    number = pl.coalesce("value_quantity", pl.col("value_integer").cast(pl.Float64), "string_number")
    takes_interpretation = ~has_value
    if derivation.options.interpretation_as_value == "beside_number":
        takes_interpretation |= number.is_not_null()
    interpretation = pl.when(takes_interpretation).then("interpretation_concept_id")
    is_coded = pl.coalesce("value_source_code", pl.when(~has_value).then("interpretation_source_code")).is_not_null()
    text = pl.coalesce("value_string", "value_other", boolean.cast(pl.String))
    return (
        _with_exact_value(frame)
        .with_columns(
            number.alias("value_as_number"),
            comparator.replace_strict(operators, default=None, return_dtype=pl.Int64).alias("operator_concept_id"),
            pl.coalesce("value_concept_id", truth, "text_concept_id", interpretation).alias("value_as_concept_id"),
            pl.when(is_coded).then(pl.col("value_source_concept_id").fill_null(0)).alias("value_as_source_concept_id"),
            _value_day(frame, derivation).alias("value_as_date"),
            pl.coalesce("value_string", "value_other").alias("value_as_string"),
            pl.coalesce(
                "value_source_code",
                "known_text",
                text,
                pl.when(~has_value).then("interpretation_source_code"),
                _number_text(frame),
            ).alias("value_source_value"),
            pl.coalesce("unit_source_code", "unit_text").alias("unit_source_value"),
            pl.col("interpretation_concept_id").alias("qualifier_concept_id"),
            pl.col("interpretation_source_code").alias("qualifier_source_value"),
        )
        .drop("value_source_code")
    )


def _with_text_concept(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds text_concept_id: what a text stands for by the value map `value_text`, as `text_key` has it; else NULL. A coded
    value without a code is a text, too, and is not counted as unmapped where the map has it.

    Texts that are not in the map are no codes that are missing: nothing is counted.
    """
    known = _known_texts(derivation)
    texts = {text: known.get(text_key(text)) for text in frame["value_string"].drop_nulls().unique()}
    of_codes = {
        number: known.get(text_key(text))
        for number in frame["value_code"].drop_nulls().unique()
        if (text := derivation.sets.text_of(number)) and derivation.sets.first_coding(number) == (None, None)
    }
    written = {number: derivation.sets.text_of(number) for number, concept in of_codes.items() if concept}
    by_code = pl.col("value_code").replace_strict(of_codes, default=None, return_dtype=pl.Int64)
    is_mapped = pl.col("value_concept_id").fill_null(0) != 0
    frame = frame.with_columns(
        pl.when(~is_mapped).then(by_code).alias("text_concept_id"),
        # A text that the map has names nobody, and is what the source says.
        pl.col("value_code").replace_strict(written, default=None, return_dtype=pl.String).alias("known_text"),
    )
    by_text = pl.col("text_concept_id").is_not_null()
    return frame.with_columns(
        pl.coalesce(
            "text_concept_id", pl.col("value_string").replace_strict(texts, default=None, return_dtype=pl.Int64)
        ).alias("text_concept_id"),
        pl.when(~by_text).then("value_concept_id").alias("value_concept_id"),
        pl.when(~by_text).then(unmapped("value_code")).alias(unmapped("value_code")),
    )


def _known_texts(derivation: Derivation) -> dict[str, int]:
    """Texts of the value map `value_text` → their concepts, of those that the vocabulary has."""
    entries = derivation.look_ups.value_maps["value_text"].filter(pl.col("concept_id") != 0)
    rows = entries.filter(pl.col("system") == _VALUE_TEXT).select("code", "concept_id").iter_rows()
    return {text_key(text): concept_id for text, concept_id in rows}


def is_result_text(texts: pl.Series, derivation: Derivation) -> pl.Series:
    """True for texts that are a number, a titre or a result that the value map knows: they hold nothing of a person."""
    known = _known_texts(derivation)
    named = [text for text in texts.drop_nulls().unique() if text_key(text) in known]
    is_number = texts.str.contains(NUMBER_TEXT) | texts.str.contains(TITRE_TEXT)
    return (is_number | texts.is_in(named)).alias("is_result_text")


_HYPHENS = str.maketrans(dict.fromkeys("‐‑‒–—−", "-"))


def text_key(text: str) -> str:
    """What spellings of a text that is a result have in common: case, white space, one kind of hyphen, no final full stop."""
    return " ".join(text.translate(_HYPHENS).casefold().split()).rstrip(". ")


def _with_string_number(frame: pl.DataFrame) -> pl.DataFrame:
    """Adds string_number, string_comparator, and string_number_exact where a double does not hold all the digits."""
    forms = [pl.col("value_string").str.extract_groups(form) for form in (NUMBER_TEXT, TITRE_TEXT)]
    sign = pl.coalesce(parts.struct.field("1") for parts in forms)
    sign = sign.replace_strict(_SIGNS, default=sign, return_dtype=pl.String)
    text = pl.coalesce(parts.struct.field("2") for parts in forms).str.replace_all(",", "", literal=True)
    number = text.cast(pl.Float64, strict=False)
    frame = frame.with_columns(
        pl.when(number.is_finite()).then(number).alias("string_number"),
        pl.when(number.is_finite()).then(sign).alias("string_comparator"),
        pl.when(number.is_finite()).then(text).alias("string_number_text"),
    )
    long = [
        text
        for text in frame["string_number_text"].drop_nulls().unique()
        if len(text) > EXACT_DIGITS and exact_number(text) is not None
    ]
    if long:
        is_long = pl.col("string_number_text").is_in(long)
        frame = frame.with_columns(pl.when(is_long).then("string_number_text").alias(exact("string_number")))
    return frame.drop("string_number_text")


def _with_exact_value(frame: pl.DataFrame) -> pl.DataFrame:
    """Adds value_as_number_exact where a number has more digits than a double holds, in its own type or in a string."""
    sources = [name for name in map(exact, ("value_quantity", "string_number")) if name in frame.columns]
    return frame.with_columns(pl.coalesce(sources).alias(exact("value_as_number"))) if sources else frame


def _value_day(frame: pl.DataFrame, derivation: Derivation) -> pl.Series:
    """The day of a value that is a date or a time (Date); NULL for one of a month or a year, which stays a text alone."""
    if "value_datetime" not in frame.columns:
        return pl.repeat(None, frame.height, dtype=pl.Date, eager=True)
    read = parsed(frame["value_datetime"], derivation.site_zone, derivation.instance_zone)
    is_day = pl.col("value_datetime_precision") >= _DAY
    return read.select(pl.when(is_day).then("value_datetime_date").alias("value_as_date"))["value_as_date"]


def _number_text(frame: pl.DataFrame) -> pl.Expr:
    """The number as the source wrote it, with its comparator."""
    quantity = pl.col("value_quantity").cast(pl.String).str.strip_suffix(".0")
    if exact("value_quantity") in frame.columns:
        quantity = pl.coalesce(exact("value_quantity"), quantity)
    number = pl.coalesce(pl.col("value_integer").cast(pl.String), quantity)
    return pl.when(number.is_not_null()).then(pl.col("value_comparator").fill_null("") + number)
