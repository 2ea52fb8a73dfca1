"""Which date of a resource counts, and what is wrong with the others: every rule takes its dates from here.

How one text is read is in `pipeline.fhir.datetimes`. What belongs here is the choice among several: the first usable
one counts, an unusable one before it is an issue, and so is an end before its start. Nearly all rows have one sound
date; only the others are looked at closely, each by itself, so that no row depends on its neighbours.

Issues are Boolean columns `issue_<code>__<column>`: `date_invalid` (no FHIR date, or a day that no calendar has),
`date_sentinel` (a date that stands for "unknown"), `date_out_of_range` (a year that cannot be meant), and
`end_before_start`. They are there only where a row has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Literal

import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.fhir.datetimes import is_open_end, parsed, ten_characters
from pipeline.transform.column_names import IMPLAUSIBLE, is_issue, is_precision, issue, issue_parts, of_precision
from pipeline.transform.rules.base import Derivation, used
from pipeline.transform.rules.declaration import rule

__all__ = [
    "DATE_OUT_OF_RANGE",
    "FIRST_YEAR",
    "ending",
    "first_usable",
    "given_by_none",
    "open_period",
    "starting",
    "used_visit_start",
    "visit_dates",
    "with_birth_date",
    "with_visit_period",
    "without_issues",
]

#: Years before this one are no dates of a patient who is in an electronic record; Epic's own zero is in 1840.
FIRST_YEAR = 1850
DATE_OUT_OF_RANGE = IssueCode.DATE_OUT_OF_RANGE

#: The zero of Unix clocks, which systems write for "unknown"; of births it is the zero of others.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_TEXTS = ("1970-01-01T00:00", "1970-01-01T00:00:00")
_AROUND_EPOCH = (date(1969, 12, 31), date(1970, 1, 2))
_UNKNOWN_BIRTH = date(1900, 1, 1)

#: event: sentinels count where there is nothing better. birth: the same, and a FHIR `date`. further: of a row that a
#: resource has besides its own: sentinels are none. end: the year 9999 is no end, and no issue; others are none.
Kind = Literal["event", "birth", "further", "end"]
_PARTS = ("date", "datetime", "moment", "precision")


def starting(frame: pl.DataFrame, derivation: Derivation, *columns: str) -> pl.DataFrame:
    """Adds start, start_date, start_datetime: the first of the columns that is usable, see `first_usable`."""
    return first_usable(frame, derivation, "start", *columns)


def ending(
    frame: pl.DataFrame, derivation: Derivation, *columns: str, name: str = "end", start: str = "start"
) -> pl.DataFrame:
    """Adds `<name>`, `<name>_date`, `<name>_datetime`: the first usable end, NULL where it lies before the start.

    Where both have a time their clocks are compared, else their days; of a year or a month whether it has passed. One
    that has not is taken for the first of its days that is not before the start. `<name>` is NULL where there is no end
    at all, or one that says that there is none (year 9999); it is the text of an end that could not be used.
    """
    frame = first_usable(frame, derivation, name, *columns, kind="end")
    by_clock = pl.col(f"{name}_moment") < pl.col(f"{start}_moment")
    by_day = pl.col(f"{name}_date") < pl.col(f"{start}_date")
    early = frame.select(pl.coalesce(by_clock, by_day).fill_null(False).alias("early"))["early"]
    if not early.any():
        known = pl.col(f"{start}_date").is_not_null()  # without a start there is no row
        return frame.with_columns(pl.when(known).then(pl.col(f"{name}_date", f"{name}_datetime")))
    frame, early = _begun_within(frame, early, name, start)
    given = pl.coalesce(
        f"{name}_from", *(pl.when(pl.col(column).is_not_null()).then(pl.lit(column)) for column in columns)
    )
    frame = frame.with_columns(early.alias("early")).with_columns(
        pl.when("early").then(given).alias("early_from"),
        *(pl.when(~pl.col("early")).then(pl.col(f"{name}_{part}")).alias(f"{name}_{part}") for part in _PARTS),
    )
    flags = {column: frame["early_from"] == column for column in columns}
    return _with_issues(frame.drop("early", "early_from"), IssueCode.END_BEFORE_START, flags)


def _begun_within(frame: pl.DataFrame, early: pl.Series, name: str, start: str) -> tuple[pl.DataFrame, pl.Series]:
    """An end of a year or month in which the start lies is the start's day, and no longer early."""
    end_day, start_day = pl.col(f"{name}_date"), pl.col(f"{start}_date")
    coarser = pl.min_horizontal(f"{name}_precision", f"{start}_precision")
    same_year = end_day.dt.year() == start_day.dt.year()
    same_month = same_year & (end_day.dt.month() == start_day.dt.month())
    overlaps = ((coarser == 4) & same_year) | ((coarser == 7) & same_month)
    within = frame.select((pl.lit(early) & overlaps).fill_null(False).alias("within"))["within"]
    if not within.any():
        return frame, early
    moved = [
        pl.when(within).then(pl.col(f"{start}_{part}")).otherwise(pl.col(f"{name}_{part}")).alias(f"{name}_{part}")
        for part in ("date", "datetime", "moment")
    ]
    return frame.with_columns(moved), early & ~within


def first_usable(
    frame: pl.DataFrame, derivation: Derivation, name: str, *columns: str, kind: Kind = "event"
) -> pl.DataFrame:
    """Adds `<name>`: the first text of the columns (FHIR dates) that is usable, else the first that is there.

    With it come `<name>_date`, `_datetime`, `_moment` and `_precision`, as `pipeline.fhir.datetimes.parsed` gives them,
    NULL where none is usable, and `<name>_from` (String): the column that it is taken from, for rows with something
    wrong in them, else NULL. Issues of the columns that were looked at; `is_implausible`: see IMPLAUSIBLE.
    """
    texts = pl.coalesce(*columns)
    texts = ten_characters(texts) if kind == "birth" else texts
    source = frame.select(texts.alias(name))[name]
    read = parsed(source, derivation.site_zone, derivation.instance_zone)
    odd = (source.is_not_null() & ~_is_sound(read[f"{name}_date"], derivation)).arg_true()
    none = pl.repeat(None, frame.height, dtype=pl.String, eager=True).alias(f"{name}_from")
    found = frame.with_columns(source, *read.get_columns(), none)
    return _looked_at_closely(frame, found, odd, derivation, name, columns, kind) if len(odd) else found


def _is_sound(dates: pl.Series, derivation: Derivation) -> pl.Series:
    """True where a date needs no closer look."""
    first, last = _range(derivation)
    day = pl.col("day")
    plausible = day.is_between(first, last) & ~day.is_between(*_AROUND_EPOCH) & (day != _UNKNOWN_BIRTH)
    return pl.DataFrame({"day": dates}).select(plausible.fill_null(False))["day"]


def _range(derivation: Derivation) -> tuple[date, date]:
    return date(FIRST_YEAR, 1, 1), date(min(derivation.as_of.year + 1, 9999), 12, 31)


def _looked_at_closely(
    frame: pl.DataFrame,
    found: pl.DataFrame,
    odd: pl.Series,
    derivation: Derivation,
    name: str,
    columns: Sequence[str],
    kind: Kind,
) -> pl.DataFrame:
    """`found`, with the rows of positions `odd` chosen anew: each candidate is read, the first usable one counts."""
    rows = pl.DataFrame(
        [
            series
            for number, column in enumerate(columns)
            for series in _candidate(frame[column].gather(odd), number, derivation, kind)
        ]
    )
    numbers = range(len(columns))

    def first_of(state: str) -> list[pl.Expr]:
        return [pl.when(pl.col(f"{state}{n}")).then(pl.lit(n, pl.Int8)) for n in numbers]

    keeps_sentinels = kind in {"event", "birth"}
    last = pl.lit(len(columns), pl.Int8)
    rows = rows.with_columns(
        pl.coalesce(*first_of("usable")).alias("usable_number"), pl.coalesce(*first_of("present")).alias("first_number")
    ).with_columns(
        pl.coalesce("usable_number", *(first_of("sentinel") if keeps_sentinels else [])).alias("number"),
        pl.coalesce("usable_number", last).alias("looked_at"),
    )
    taken = pl.coalesce("number", "first_number")

    def of(number: pl.Expr, part: str) -> pl.Expr:
        return pl.coalesce(*(pl.when(number == n).then(pl.col(f"{part}{n}")) for n in numbers))

    chosen = rows.select(
        of(taken, "text").alias(name),
        *(of(pl.col("number"), part).alias(f"{name}_{part}") for part in _PARTS),
        taken.replace_strict(dict(enumerate(columns)), return_dtype=pl.String).alias(f"{name}_from"),
    ).with_columns(  # a text that is there and cannot be used has precision 0
        pl.when(pl.col(name).is_not_null()).then(pl.col(f"{name}_precision").fill_null(0)).alias(f"{name}_precision")
    )
    found = found.with_columns(
        found[column.name].clone().scatter(odd, column).alias(column.name) for column in chosen.get_columns()
    )
    for code in (IssueCode.DATE_INVALID, IssueCode.DATE_SENTINEL, DATE_OUT_OF_RANGE):
        flags = rows.select((pl.col(f"{code}{n}") & (pl.col("looked_at") >= n)).alias(columns[n]) for n in numbers)
        found = _with_issues(found, code, {flag.name: flag for flag in flags.get_columns()}, odd)
    if kind == "end":
        return found
    implausible = rows.select((of(pl.col("number"), "implausible")).fill_null(False).alias(IMPLAUSIBLE))[IMPLAUSIBLE]
    return _flagged(found, IMPLAUSIBLE, implausible, odd)


def _candidate(texts: pl.Series, number: int, derivation: Derivation, kind: Kind) -> list[pl.Series]:
    """One column's texts read and judged; columns `text`, the parts and the judgements, each with the number."""
    text = pl.col("text")
    texts = texts.alias("text")
    if kind == "end":  # an end that says that there is none is none
        texts = texts.to_frame().select(pl.when(~is_open_end(text)).then(text))["text"]
    elif kind == "birth":
        texts = texts.to_frame().select(ten_characters(text))["text"]
    read = parsed(texts.alias("d"), derivation.site_zone, derivation.instance_zone).rename(lambda name: name[2:])
    day = pl.col("date")
    at_epoch = (pl.col("moment") == _EPOCH) | text.is_in(_EPOCH_TEXTS)
    sentinel = ((day == _UNKNOWN_BIRTH if kind == "birth" else at_epoch) | (day.dt.year() == 9999)).fill_null(False)
    strays = (day.is_not_null() & ~day.is_between(*_range(derivation))).fill_null(False)
    no_end = strays if kind == "end" and derivation.options.implausible_dates == "exclude" else pl.lit(False)
    judged = (
        read.with_columns(texts)
        .with_columns(
            text.is_not_null().alias("present"),
            sentinel.alias("sentinel"),
            sentinel.alias("date_sentinel"),
            (strays & ~sentinel).alias(DATE_OUT_OF_RANGE),
            (text.is_not_null() & day.is_null()).alias("date_invalid"),
        )
        .with_columns(
            (day.is_not_null() & ~pl.col("sentinel") & ~no_end).alias("usable"),
            (pl.col("sentinel") | pl.col(DATE_OUT_OF_RANGE)).alias("implausible"),
        )
    )
    return [series.alias(f"{series.name}{number}") for series in judged.get_columns()]


def _with_issues(
    frame: pl.DataFrame, code: IssueCode, flags: dict[str, pl.Series], rows: pl.Series | None = None
) -> pl.DataFrame:
    """Adds `issue_<code>__<column>` where a flag is set. `rows`: the positions that the flags are about, None: all."""
    for column, flag in flags.items():
        frame = _flagged(frame, issue(code, column), flag.fill_null(False), rows)
    return frame


def _flagged(frame: pl.DataFrame, name: str, flag: pl.Series, rows: pl.Series | None) -> pl.DataFrame:
    if not flag.any():
        return frame
    if rows is not None:
        flag = pl.repeat(False, frame.height, dtype=pl.Boolean, eager=True).scatter(rows, flag)
    return frame.with_columns((frame[name] | flag if name in frame.columns else flag).alias(name))


def without_issues(frame: pl.DataFrame, columns: Iterable[str]) -> pl.DataFrame:
    """Without the issues of these columns, which are reported elsewhere, and without what says that they were imputed."""
    columns = set(columns)
    return frame.drop(
        name
        for name in frame.columns
        if name == IMPLAUSIBLE
        or (is_issue(name) and issue_parts(name)[1] in columns)
        or (is_precision(name) and of_precision(name) in columns)
    )


def given_by_none(name: str, columns: Sequence[str]) -> pl.Expr:
    """True for rows of `first_usable(…, name, …)` whose date is not from one of these columns."""
    source = pl.col(f"{name}_from")
    by_others = ~source.is_in(columns) | pl.col(f"{name}_date").is_null()
    return pl.when(source.is_not_null()).then(by_others).otherwise(pl.coalesce(*columns).is_null())


def with_birth_date(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds birth_date_date, birth_date_precision …: `birth_date` is a FHIR `date`, never shifted by a zone."""
    return first_usable(frame, derivation, "birth_date", "birth_date", kind="birth")


@rule(
    reads=("start", "end"),
    writes=("value",),
)
def open_period(frame: pl.DataFrame, _derivation: Derivation) -> pl.DataFrame:
    """Fact: the start of what has no end, or one that says that there is none."""
    value = pl.when(is_open_end(pl.col("end")).fill_null(True)).then("start")
    return frame.with_columns(value.alias("value"))


def with_visit_period(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds visit_start and visit_end: FHIR date strings of the encounter that the resource refers to, as it gives them:
    to be chosen among others by `starting`, or read by `visit_dates`."""
    frame = derivation.with_fact(frame, "visit_occurrence_id", "encounter_period", "encounter_period")
    period = pl.col("encounter_period").str.split_exact("/", 1).struct.rename_fields(["visit_start", "visit_end"])
    return (
        frame.with_columns(period)
        .unnest("encounter_period")
        .with_columns(
            pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in ("visit_start", "visit_end")
        )
    )


def visit_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds visit_start_date, visit_end_date …; what is wrong with them is an issue of the encounter's own."""
    implausible = [IMPLAUSIBLE] if IMPLAUSIBLE in frame.columns else []
    kept = [*implausible, *(name for name in frame.columns if is_issue(name))]
    before = frame.select(kept)
    frame = first_usable(frame, derivation, "visit_start", "visit_start")
    frame = ending(frame, derivation, "visit_end", name="visit_end", start="visit_start")
    frame = without_issues(frame, ("visit_start", "visit_end"))
    return frame.with_columns(before.get_columns())


def used_visit_start(frame: pl.DataFrame, own: Sequence[str]) -> pl.DataFrame:
    """Note that rows without a usable date of their own (columns `own`) depend on the encounter's period."""
    undated = given_by_none("start", own) & pl.col("visit_occurrence_id").is_not_null()
    return used(frame, "encounter_period", "visit_occurrence_id", undated, pl.col("visit_start").is_null())
