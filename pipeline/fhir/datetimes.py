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

    Precision is the number of characters that carry the date: 4 (year), 7 (month), 10 (day) or 19 (time); 0 marks a
    string that is no FHIR date, NULL an absent one. `YYYY-MM` gives the first of the month, `YYYY` 1 January.
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
    # A time without a zone is the site's own clock; an hour that summer time skips or repeats is taken as the earlier.
    local = whole.str.to_datetime(_LOCAL, strict=False, time_unit="us").dt.replace_time_zone(
        site_zone, ambiguous="earliest", non_existent="null"
    )
    at_site = pl.coalesce(instant.dt.convert_time_zone(site_zone), local)
    valid = source.str.contains(timestamp_format) & pl.coalesce(day, at_site.dt.date()).is_not_null()
    precision = pl.when(valid).then(pl.min_horizontal(length, pl.lit(19)).cast(pl.Int8)).otherwise(pl.lit(0, pl.Int8))
    return [
        pl.when(valid).then(pl.coalesce(day, at_site.dt.date())).alias(f"{column}_date"),
        pl.when(valid)
        .then(
            pl.coalesce(
                day.cast(pl.Datetime("us")), at_site.dt.convert_time_zone(instance_zone).dt.replace_time_zone(None)
            )
        )
        .alias(f"{column}_datetime"),
        pl.when(source.is_not_null()).then(precision).alias(f"{column}_precision"),
    ]
