"""Vocabulary tables out of PostgreSQL, as frames and files that polars reads: what the compilation of the index is made from.

Pairs of ids come as arrays of many rows at once: a row at a time through the driver would cost more than all that follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import psycopg
from numpy.typing import NDArray
from psycopg import sql

__all__ = ["copy_rows", "id_columns"]

#: Pages of a table (8 KiB each) that are one answer: about 200,000 rows of two ids.
_PAGES = 1024
#: Of PostgreSQL's binary arrays: dimensions, flags, type; size and lower bound of the only dimension.
_ARRAY_HEAD = 20
_ELEMENT = np.dtype([("length", ">i4"), ("value", ">i4")])


def id_columns(
    connection: psycopg.Connection, table: sql.Identifier, columns: Mapping[str, str], where: str
) -> Iterator[pl.DataFrame]:
    """Frames of Int32 columns, a part of the table each, in no order. `columns`: name → SQL of an integer, never NULL.

    Each part is read by its pages (PostgreSQL 14 and later read no others for it).
    """
    [(pages,)] = connection.execute(
        sql.SQL("SELECT pg_relation_size({})::bigint / current_setting('block_size')::bigint").format(
            sql.Literal(table.as_string(connection))
        )
    ).fetchall()
    arrays = ", ".join(f"array_agg(({expression})::int4)" for expression in columns.values())
    for first in range(0, pages, _PAGES):
        query = f"SELECT {arrays} FROM {table.as_string(connection)} WHERE ({where})"
        pages_of_part = f" AND ctid >= '({first},0)' AND ctid < '({first + _PAGES},0)'"
        with connection.cursor(binary=True) as cursor:
            # The text is the project's own, and names are quoted.
            result = cursor.execute((query + pages_of_part).encode()).pgresult
            assert result is not None
            values = [_integers(result.get_value(0, number)) for number in range(len(columns))]
        if len(values[0]):
            yield pl.DataFrame(dict(zip(columns, values, strict=True)))


def _integers(array: bytes | None) -> NDArray[np.int32]:
    if array is None:
        return np.empty(0, dtype=np.int32)
    return np.frombuffer(array, dtype=_ELEMENT, offset=_ARRAY_HEAD)["value"].astype(np.int32)


def copy_rows(
    connection: psycopg.Connection, query: str, schema: Mapping[str, pl.DataType], path: Path
) -> pl.LazyFrame:
    """The rows of a query through a CSV file at `path`, which stays until the frame is no longer wanted."""
    copy_out = f"COPY ({query}) TO STDOUT (FORMAT csv)".encode()
    with path.open("wb") as target, connection.cursor().copy(copy_out) as copy:
        for chunk in copy:
            target.write(chunk)
    if not path.stat().st_size:  # polars refuses an empty file
        return pl.LazyFrame(schema=dict(schema))
    return pl.scan_csv(path, has_header=False, schema=dict(schema))
