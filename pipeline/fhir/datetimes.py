"""FHIR date, dateTime and instant strings → dates and datetimes, vectorised.

A date is taken in the site's zone, because Epic writes instants in UTC and an evening in Chicago must not move to
the next day; a datetime is given in the instance's zone (f2o-072). A date-only value keeps its date and has midnight.
Here is how one text is read; which of several counts is in `pipeline.transform.rules.dates`.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

import polars as pl

__all__ = ["is_calendar_date", "is_open_end", "is_sentinel", "parsed", "ten_characters", "timestamp_format"]

_INSTANT = "%Y-%m-%dT%H:%M:%S%.f%#z"
_LOCAL = "%Y-%m-%dT%H:%M:%S%.f"
#: What FHIR allows, and seconds or zone left out, which some servers do.
timestamp_format = r"^\d{4}(-\d{2}(-\d{2}(T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2})?)?)?)?$"

_FORM = re.compile(timestamp_format.removeprefix("^").removesuffix("$"), re.ASCII)

#: The form of nearly all: 19 characters that polars reads in a fast way, and an end of which there are few different.
_USUAL = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})$"
_LEAP_SECOND = r"^(.{17})60"
_UNIX_ZERO = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCK, _CLOCK_LENGTH = "%Y-%m-%dT%H:%M:%S", 19


def parsed(texts: pl.Series, site_zone: str, instance_zone: str) -> pl.DataFrame:
    """A text column as `<name>_date` (Date), `<name>_datetime` (Datetime μs, naive), `<name>_moment` (Datetime μs, UTC:
    the instant; NULL for a date without a time) and `<name>_precision` (Int8).

    Precision is the number of characters that carry the date: 4 (year), 7 (month), 10 (day) or more (time); 0 marks a
    string that is not a valid FHIR date, NULL an absent one. `YYYY-MM` gives the first of the month, `YYYY` 1 January.
    Years are 1 to 9999 in both zones: FHIR has no others, and a single one would make PostgreSQL refuse a whole load.
    """
    if texts.null_count() == len(texts):  # most elements of most resources are absent
        return _absent(texts)
    moments = _usual_moments(texts)
    days = pl.repeat(None, len(texts), dtype=pl.Date, eager=True)
    readable = moments.is_not_null()
    others = (texts.is_not_null() & ~readable).arg_true()
    if len(others):
        found = _read_in_any_form(texts.gather(others), site_zone)
        days, moments = days.scatter(others, found["day"]), moments.scatter(others, found["moment"])
        readable = readable.scatter(others, texts.gather(others).str.contains(timestamp_format))
    source, valid = pl.col("source"), pl.col("valid")
    length = pl.min_horizontal(source.str.len_bytes(), pl.lit(19)).cast(pl.Int8)
    at_site = pl.col("moment").dt.convert_time_zone(site_zone).dt.replace_time_zone(None)
    here = pl.col("moment").dt.convert_time_zone(instance_zone).dt.replace_time_zone(None)
    return (
        # Step by step: within one step polars would compute what two expressions share twice.
        pl.DataFrame({"source": texts, "day": days, "moment": moments, "readable": readable})
        .with_columns(at_site.alias("at_site"))
        .select(
            source,
            "readable",
            "moment",
            pl.coalesce("day", pl.col("at_site").dt.date()).alias("date"),
            pl.coalesce(
                pl.col("day").cast(pl.Datetime("us")), pl.col("at_site") if instance_zone == site_zone else here
            ).alias("datetime"),
        )
        .with_columns((pl.col("readable") & _four_digits("date") & _four_digits("datetime")).alias("valid"))
        .select(
            pl.when(valid).then("date").alias(f"{texts.name}_date"),
            pl.when(valid).then("datetime").alias(f"{texts.name}_datetime"),
            pl.when(valid).then("moment").alias(f"{texts.name}_moment"),
            pl.when(source.is_not_null())
            .then(pl.when(valid).then(length).otherwise(pl.lit(0, pl.Int8)))
            .alias(f"{texts.name}_precision"),
        )
    )


def _absent(texts: pl.Series) -> pl.DataFrame:
    """What `parsed` gives for a column without a value."""
    kinds = {
        "date": pl.Date(),
        "datetime": pl.Datetime("us"),
        "moment": pl.Datetime("us", "UTC"),
        "precision": pl.Int8(),
    }
    none = [pl.Series(f"{texts.name}_{name}", [None], dtype=kind) for name, kind in kinds.items()]
    return pl.DataFrame([series.new_from_index(0, len(texts)) for series in none])


def is_open_end(text: pl.Expr) -> pl.Expr:
    """True where the end of a period says that there is none: the year 9999 in any form. NULL where it is absent."""
    return text.str.starts_with("9999") & text.str.contains(timestamp_format)


def is_calendar_date(text: str) -> bool:
    """Whether one text is a FHIR date whose day a calendar has, as `parsed` sees it but for the clock."""
    if not _FORM.fullmatch(text):
        return False
    try:
        date.fromisoformat(f"{text}-01-01"[:10] if len(text) == 4 else f"{text}-01"[:10])
    except ValueError:
        return False
    return True


def is_sentinel(text: str) -> bool:
    """Whether one text that is a FHIR date stands for "unknown": the zero of Unix clocks, or the year 9999."""
    if text.startswith("9999"):
        return True
    if not text.startswith(("1969-12-31T", "1970-01-01T")):
        return False
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return False
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) == _UNIX_ZERO


def ten_characters(text: pl.Expr) -> pl.Expr:
    """A FHIR `date` to which a server has added a time keeps its ten characters: no zone shifts it."""
    has_time = (text.str.len_bytes() > 10) & text.str.contains(timestamp_format)
    return pl.when(has_time).then(text.str.head(10)).otherwise(text)


def _usual_moments(texts: pl.Series) -> pl.Series:
    """Instants (Datetime μs in UTC) of texts in the usual form; NULL for all others, also for a leap second."""
    usual = pl.DataFrame({"text": texts}).select(
        pl.when(pl.col("text").str.contains(_USUAL)).then("text").alias("text")
    )
    parts = usual.select(
        pl.col("text").str.head(_CLOCK_LENGTH).str.to_datetime(_CLOCK, strict=False, time_unit="us").alias("clock"),
        pl.col("text").str.slice(_CLOCK_LENGTH).alias("end"),
    )
    # What an end adds to the clock: its fraction of a second, less its zone's offset.
    ends = parts.select("end").drop_nulls().unique()
    added = ("1970-01-01T00:00:00" + pl.col("end")).str.to_datetime(_INSTANT, strict=False, time_unit="us")
    ends = ends.with_columns(added.cast(pl.Int64).alias("added"))
    moment = (pl.col("clock").cast(pl.Int64) + pl.col("added")).cast(pl.Datetime("us", "UTC"))
    return parts.join(ends, on="end", how="left", maintain_order="left").select(moment.alias("moment"))["moment"]


def _read_in_any_form(texts: pl.Series, site_zone: str) -> pl.DataFrame:
    """Columns day (Date) of dates and moment (Datetime μs in UTC) of times."""
    source = pl.col("source")
    length = source.str.len_bytes()
    has_time = length > 10
    padded = (
        pl.when(length == 4)
        .then(source + "-01-01")
        .when(length == 7)
        .then(source + "-01")
        .when(length == 10)
        .then(source)
    )
    # Seconds may be left out (`T23:37Z`): put them in, so that one format reads all. A leap second stays in its day.
    whole = (
        pl.when(has_time & (source.str.slice(16, 1) != ":"))
        .then(source.str.slice(0, 16) + ":00" + source.str.slice(16))
        .when(has_time)
        .then(source.str.replace(_LEAP_SECOND, "${1}59"))
    )
    rows = pl.DataFrame({"source": texts}).select(
        padded.str.to_date("%Y-%m-%d", strict=False).alias("day"),
        whole.str.to_datetime(_INSTANT, strict=False, time_unit="us").alias("instant"),
        whole.alias("whole"),
    )
    at_own_clock = _at_own_clock(pl.col("whole"), site_zone).dt.convert_time_zone("UTC")
    return rows.select("day", pl.coalesce("instant", at_own_clock).alias("moment"))


def _at_own_clock(text: pl.Expr, site_zone: str) -> pl.Expr:
    """A time without a zone is the site's own clock. Of an hour that is repeated in autumn the earlier is taken; one
    that is skipped in spring is read on as if the clock had not been changed."""
    naive = text.str.to_datetime(_LOCAL, strict=False, time_unit="us")
    return pl.coalesce(
        moment.dt.replace_time_zone(site_zone, ambiguous="earliest", non_existent="null")
        for moment in (naive, naive + pl.duration(hours=1))
    )


def _four_digits(column: str) -> pl.Expr:
    """False for NULL as well."""
    return pl.col(column).dt.year().is_between(1, 9999).fill_null(False)
