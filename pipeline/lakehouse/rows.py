"""Rows of a table out of PostgreSQL, in batches of bounded size, as frames with the types of the lakehouse.

The way is COPY as CSV, without a Python object a value: an empty text comes quoted and NULL as nothing, so that
they stay apart. Values never appear in an error.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import polars as pl
import psycopg

from pipeline.core.errors import AccountingError, LakehouseError
from pipeline.core.settings import Settings
from pipeline.lakehouse.layout import EXACT_NUMBER, YEAR, LakeTable

__all__ = ["BATCH_BYTES", "Batch", "table_batches"]

#: CSV that is turned into a frame at once.
BATCH_BYTES = 32 << 20

#: A decimal of so many characters has at most 15 significant digits, which every double gives back.
_SURELY_EXACT = 15

_NAMED_COLUMN = re.compile(r"at column '(\w+)'")


@dataclass(frozen=True)
class Batch:
    """Some rows, in the order of the table's query. `exact` has the columns of EXACT_NUMBER, mostly without a row."""

    frame: pl.DataFrame
    exact: pl.DataFrame


def table_batches(
    connection: psycopg.Connection, settings: Settings, table: LakeTable, *, batch_bytes: int = BATCH_BYTES
) -> Iterator[Batch]:
    """All rows of a table; memory is that of a batch, and of one row where that is larger.

    Raises LakehouseError for a value that Parquet cannot hold (a date outside of the years 1 to 9999).
    """
    statement = f"COPY ({table.query(settings)}) TO STDOUT (FORMAT csv, ENCODING 'UTF8')"
    buffer, rows = io.BytesIO(), 0
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for row in copy:  # one message a row, says PostgreSQL's protocol: a batch never ends within a row
            buffer.write(row)
            rows += 1
            if buffer.tell() >= batch_bytes:
                yield _batch(table, buffer, rows)
                buffer, rows = io.BytesIO(), 0
    if rows:
        yield _batch(table, buffer, rows)


def _batch(table: LakeTable, buffer: io.BytesIO, rows: int) -> Batch:
    texts = dict(table.columns) | dict.fromkeys(table.numbers, pl.String())
    schema = {YEAR: pl.Int32(), **texts} if table.date else texts
    buffer.seek(0)
    try:
        frame = pl.read_csv(buffer, has_header=False, schema=schema)
    except pl.exceptions.PolarsError as error:
        raise _unreadable(table, str(error)) from None  # its words quote the value
    if frame.height != rows:
        raise AccountingError(
            f"Of {rows:,} rows of {table.name}, {frame.height:,} were read.", "Nothing was published; please report it."
        )
    exact = [_exact(table, frame, column) for column in table.numbers]
    numbers = [pl.col(name).cast(pl.Float64()).replace([float("inf"), float("-inf")], None) for name in table.numbers]
    return Batch(
        frame.with_columns(numbers), pl.concat(exact) if exact else pl.DataFrame(schema=dict(EXACT_NUMBER.columns))
    )


def _exact(table: LakeTable, frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """The numbers of a column whose double is another number, or none."""
    long = frame.filter(pl.col(column).str.len_bytes() > _SURELY_EXACT).select(table.row_id, column)
    rows = [(table.name, row_id, column, text) for row_id, text in long.iter_rows() if not _is_double(text)]
    return pl.DataFrame(rows, schema=dict(EXACT_NUMBER.columns), orient="row")


def _is_double(text: str) -> bool:
    return Decimal(text) == Decimal(repr(float(text)))


def _unreadable(table: LakeTable, words: str) -> LakehouseError:
    named = _NAMED_COLUMN.search(words)
    column = f".{named[1]}" if named and named[1] in table.columns else ""
    return LakehouseError(
        f"{table.name}{column} holds a value that Parquet cannot: a date outside of the years 1 to 9999, perhaps.",
        "Correct it in the database, then publish again; the last snapshot stays as it is.",
    )
