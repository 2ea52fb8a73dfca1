# ruff: noqa: DTZ001 - the datetimes of OMOP columns carry no zone
"""FHIR date strings → dates in the site's zone and datetimes in the instance's."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fhir.datetimes import parsed

#: The machine may be busy; what a test does is what counts.
UNTIMED = settings(deadline=None)

CHICAGO = "America/Chicago"
DATES = st.dates(date(1, 1, 2), date(9999, 12, 30))
#: Polars knows no summer time after 2099.
INSTANTS = st.datetimes(datetime(1900, 1, 2), datetime(2098, 12, 30))
OFFSETS = st.integers(-12 * 60, 14 * 60)


def read(*texts: str | None, site: str = "UTC", instance: str = "UTC") -> list[tuple[date, datetime, int]]:
    read = parsed(pl.Series("start", list(texts), dtype=pl.String), site, instance)
    return read.drop("start_moment").rows()


@UNTIMED
@given(DATES)
def test_dates_keep_their_day_in_every_zone(day):
    midnight = datetime.combine(day, time())
    assert read(day.isoformat(), site=CHICAGO, instance="Asia/Tokyo") == [(day, midnight, 10)]
    assert read(day.isoformat()[:7]) == [(day.replace(day=1), midnight.replace(day=1), 7)]
    assert read(day.isoformat()[:4]) == [(day.replace(month=1, day=1), midnight.replace(month=1, day=1), 4)]


@UNTIMED
@given(INSTANTS, OFFSETS, st.sampled_from(["UTC", CHICAGO, "Asia/Kolkata"]), st.sampled_from(["UTC", CHICAGO]))
def test_instants_have_the_sites_date_and_the_instances_time(moment, offset, site, instance):
    written = moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=offset)))
    expected = moment.replace(tzinfo=UTC)
    found = read(written.isoformat(), site=site, instance=instance)[0]
    assert found[0] == expected.astimezone(ZoneInfo(site)).date()
    assert found[1] == expected.astimezone(ZoneInfo(instance)).replace(tzinfo=None)


def test_an_evening_in_chicago_does_not_move_to_the_next_day():
    assert read("2024-07-11T02:30:00Z", site=CHICAGO) == [(date(2024, 7, 10), datetime(2024, 7, 11, 2, 30), 19)]


@pytest.mark.parametrize(
    ("text", "day", "moment"),
    [
        ("2024-03-10T12:05Z", date(2024, 3, 10), datetime(2024, 3, 10, 12, 5)),
        ("2024-03-10T12:05-05:00", date(2024, 3, 10), datetime(2024, 3, 10, 17, 5)),
        ("2024-03-10T12:05:01.5Z", date(2024, 3, 10), datetime(2024, 3, 10, 12, 5, 1, 500_000)),
        ("2024-03-10T12:05:01.123456789Z", date(2024, 3, 10), datetime(2024, 3, 10, 12, 5, 1, 123_456)),
        ("2016-12-31T23:59:60Z", date(2016, 12, 31), datetime(2016, 12, 31, 23, 59, 59)),
        ("2017-01-01T05:59:60.5Z", date(2016, 12, 31), datetime(2017, 1, 1, 5, 59, 59, 500_000)),
        ("2024-07-10T21:05:00", date(2024, 7, 10), datetime(2024, 7, 11, 2, 5)),
        ("2024-11-03T01:30:00", date(2024, 11, 3), datetime(2024, 11, 3, 6, 30)),
        ("2024-03-10T02:30:00", date(2024, 3, 10), datetime(2024, 3, 10, 8, 30)),
    ],
)
def test_forms_that_are_met(text, day, moment):
    """Seconds left out, fractions, a leap second, no zone (the site's clock), an hour twice, an hour that is skipped."""
    assert read(text, site=CHICAGO)[0][:2] == (day, moment)


INVALID = [
    "", " ", "0", "0000", "0000-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2024-13", "2024-00",
    "2024-02-30", "2023-02-29", "2024-1-1", "20240101", "2024-01-01 ", " 2024-01-01", "2024-01-01\n", "2024/01/01",
    "01/02/2024", "2024-01-01T24:00:00Z", "2024-01-01T10", "2024-01-01T10Z", "2024-01-01T10:00:00.Z", "2024-01-01 10:00:00Z",
    "2024-01-01T10:00:61Z", "2024-01-01T10:60:00Z", "2024-01-01T10:00:00+25:00", "2024-01-01T10:00:00+0100", "now", "２０２４",
    "2024-01-01T10:00:00Z/2024", "infinity", "12024-01-01", "-2024-01-01",
]  # fmt: skip


@pytest.mark.parametrize("text", INVALID)
def test_what_is_no_fhir_date_never_gives_a_date(text):
    assert read(text, site=CHICAGO) == [(None, None, 0)]


@UNTIMED
@given(st.one_of(st.text(max_size=30), st.text("0123456789-:TZ.+ ", max_size=30)))
def test_any_text_gives_a_date_that_postgresql_takes_or_none(text):
    day, moment, precision = read(text, site=CHICAGO)[0]
    assert (day is None) == (moment is None) == (precision == 0)
    assert day is None or (1 <= day.year <= 9999 and 1 <= moment.year <= 9999)


def test_an_absent_date_is_null():
    assert read(None) == [(None, None, None)]
    assert read() == []


def test_each_row_is_read_by_itself():
    assert [row[2] for row in read("2024", "2024-05", "nonsense", None, "2024-05-06T07:08:09Z")] == [4, 7, 0, None, 19]
