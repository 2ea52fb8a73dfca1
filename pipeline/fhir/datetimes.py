"""FHIR date, dateTime and instant strings → dates and datetimes, vectorised.

A date is taken in the site's zone, because Epic writes instants in UTC and an evening in Chicago must not move to
the next day; a datetime is given in the instance's zone (f2o-072). A date-only value keeps its date and has midnight.
"""

from __future__ import annotations

import polars as pl

__all__ = ["parsed", "timestamp_format"]

_INSTANT = "%Y-%m-%dT%H:%M:%S%.f%#z"
_LOCAL = "%Y-%m-%dT%H:%M:%S%.f"
#: What FHIR allows, and seconds or zone left out, which some servers do.
timestamp_format = r"^\d{4}(-\d{2}(-\d{2}(T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2})?)?)?)?$"


def parsed(column: str, site_zone: str, instance_zone: str) -> list[pl.Expr]:
    """Expressions for `<column>_date` (Date), `<column>_datetime` (Datetime μs, naive), `<column>_precision`.

    Precision is the number of characters that carry the date: 4 (year), 7 (month), 10 (day) or more (time); 0 marks a
    string that is no FHIR date, NULL an absent one. `YYYY-MM` gives the first of the month, `YYYY` 1 January.
    Years are 1 to 9999 in both zones: FHIR has no others, and a single one would make PostgreSQL refuse a whole load.
    """
    source = pl.col(column)
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
    day = padded.str.to_date("%Y-%m-%d", strict=False)
    # Seconds may be left out (`T23:37Z`): put them in, so that one format reads all.
    whole = (
        pl.when(has_time & (source.str.slice(16, 1) != ":"))
        .then(source.str.slice(0, 16) + ":00" + source.str.slice(16))
        .when(has_time)
        .then(source)
    )
    instant = whole.str.to_datetime(_INSTANT, strict=False, time_unit="us")
    at_site = pl.coalesce(instant.dt.convert_time_zone(site_zone), _at_own_clock(whole, site_zone))
    in_instance = at_site.dt.convert_time_zone(instance_zone).dt.replace_time_zone(None)
    site_day, instance_time = pl.coalesce(day, at_site.dt.date()), pl.coalesce(day.cast(pl.Datetime("us")), in_instance)
    valid = source.str.contains(timestamp_format) & _four_digits(site_day) & _four_digits(instance_time)
    precision = pl.when(valid).then(pl.min_horizontal(length, pl.lit(19)).cast(pl.Int8)).otherwise(pl.lit(0, pl.Int8))
    return [
        pl.when(valid).then(site_day).alias(f"{column}_date"),
        pl.when(valid).then(instance_time).alias(f"{column}_datetime"),
        pl.when(source.is_not_null()).then(precision).alias(f"{column}_precision"),
    ]


def _at_own_clock(text: pl.Expr, site_zone: str) -> pl.Expr:
    """A time without a zone is the site's own clock. Of an hour that is repeated in autumn the earlier is taken; one
    that is skipped in spring is read on as if the clock had not been changed."""
    naive = text.str.to_datetime(_LOCAL, strict=False, time_unit="us")
    return pl.coalesce(
        moment.dt.replace_time_zone(site_zone, ambiguous="earliest", non_existent="null")
        for moment in (naive, naive + pl.duration(hours=1))
    )


def _four_digits(moment: pl.Expr) -> pl.Expr:
    """False for NULL as well."""
    return moment.dt.year().is_between(1, 9999).fill_null(False)
