"""COPY in the binary format brings the same rows as the text format, value by value, and leaves to it what it cannot."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import psycopg
import pytest

from pipeline.warehouse.copying import column_types, copy_encoded, encoded

_TYPES = {
    "row_id": "bigint",
    "small": "smallint",
    "whole": "integer",
    "large": "bigint",
    "number": "numeric",
    "precise": "numeric",
    "words": "text",
    "short": "varchar(20)",
    "empty": "text",
    "nothing": "integer",
    "day": "date",
    "local": "timestamp",
    "instant": "timestamptz",
    "flag": "boolean",
}
#: More rows than are laid out at a time, and not a multiple of that.
_ROWS = 5000


@pytest.fixture
def connection(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        yield connection
        connection.rollback()


def _frame() -> pl.DataFrame:
    """Values at the ends of what the types hold, and random ones; a fifth of all but the first column is NULL."""
    rng = random.Random(1)
    values: dict[str, list[Any]] = {
        "small": [-(2**15), 2**15 - 1, 0],
        "whole": [-(2**31), 2**31 - 1, 0],
        "large": [-(2**63), 2**63 - 1, 0],
        "number": [0.0, -0.0, 1.0, -1.0, 120.0, 76.5, 0.1, 0.0001, -0.0001, 9999.9999, 10000.0, 99999999.9999, -1e7],
        "precise": [0.0, 0.12345678, -0.00000001, 9999999.0, 0.1, 36.66667, 1e-5],
        "words": ["", "a", "ü€𐍈", "tab\tline\nreturn\rback\\slash", "\\N", "\\.", '"quoted"', "x" * 300],
        "short": ["mmol/L", "", "ÄÖÜ"],
        "empty": [""],
        "nothing": [None],
        "day": [date(1, 1, 1), date(1999, 12, 31), date(2000, 1, 1), date(9999, 12, 31)],
        "local": [datetime(1900, 1, 1), datetime(1999, 12, 31, 23, 59, 59, 999999), datetime(2026, 2, 3, 4, 5, 6)],  # noqa: DTZ001
        "instant": [datetime(2026, 1, 2, 6, tzinfo=UTC), datetime(1969, 12, 31, 23, 0, 0, 1, tzinfo=UTC)],
        "flag": [True, False],
    }
    values["number"] += [round(rng.uniform(-1000, 1000), rng.randrange(5)) for _ in range(200)]
    values["precise"] += [round(rng.uniform(-1000, 1000), rng.randrange(9)) for _ in range(200)]
    values["day"] += [date(1900, 1, 1) + timedelta(days=rng.randrange(70_000)) for _ in range(50)]
    columns: dict[str, list[Any]] = {
        name: [None if rng.random() < 0.2 else rng.choice(known) for _ in range(_ROWS)]
        for name, known in values.items()
    }
    schema = {
        "row_id": pl.Int64,
        **dict.fromkeys(("small", "whole", "large", "nothing"), pl.Int64),
        **dict.fromkeys(("number", "precise"), pl.Float64),
        **dict.fromkeys(("words", "short", "empty"), pl.String),
        "day": pl.Date,
        "local": pl.Datetime("us"),
        "instant": pl.Datetime("us", "UTC"),
        "flag": pl.Boolean,
    }
    return pl.DataFrame({"row_id": range(_ROWS), **columns}, schema=schema).select(list(_TYPES))


def test_both_formats_bring_the_same_rows(connection: psycopg.Connection) -> None:
    frame = _frame()
    columns = ", ".join(f"{name} {kind}" for name, kind in _TYPES.items())
    for name in ("by_text", "by_binary"):
        connection.execute(f"CREATE TEMP TABLE {name} ({columns})")
    binary = encoded(frame, column_types(connection, "pg_temp.by_binary"))
    assert binary.is_binary
    assert copy_encoded(connection, "pg_temp.by_text", encoded(frame)) == _ROWS
    assert copy_encoded(connection, "pg_temp.by_binary", binary) == _ROWS
    for name in _TYPES:  # as texts: numbers with the same decimal places, not only of the same value
        different = connection.execute(
            f"SELECT a.{name}::text, b.{name}::text FROM pg_temp.by_text AS a FULL JOIN pg_temp.by_binary AS b USING (row_id)"
            f" WHERE a.{name}::text IS DISTINCT FROM b.{name}::text LIMIT 3"
        ).fetchall()
        assert different == [], name


def test_rows_without_null_and_text_have_one_width(connection: psycopg.Connection) -> None:
    frame = pl.DataFrame({"row_id": [1, 2, 3], "large": [-1, 0, 2**62]})
    connection.execute("CREATE TEMP TABLE lineage (row_id bigint NOT NULL, large bigint NOT NULL)")
    copy_encoded(connection, "pg_temp.lineage", encoded(frame, column_types(connection, "pg_temp.lineage")))
    assert connection.execute("SELECT * FROM pg_temp.lineage").fetchall() == frame.rows()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**31], "integer"),
        ([0.123456789], "numeric"),
        ([123456789.5], "numeric"),
        ([float("nan")], "numeric"),
        ([float("inf")], "numeric"),
        ([1e300], "numeric"),
        ([0.1 + 0.2], "numeric"),
        (["12.50"], "numeric"),  # a number that a double cannot hold comes as text
        (["x" * 100_000], "text"),
        ([date(2026, 1, 1)], "timestamp without time zone"),
        ([1], "jsonb"),
    ],
)
def test_what_has_no_place_in_the_binary_format_goes_as_text(values: list[Any], kind: str) -> None:
    assert not encoded(pl.DataFrame({"value": values}), {"value": kind}).is_binary
