"""Frames into PostgreSQL by COPY, and query results into frames. The only place that knows the text format between."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import psycopg

__all__ = ["copy_frame", "read_frame", "temporary_table"]

_BLOCK = 1 << 20


def copy_frame(connection: psycopg.Connection, table: str, frame: pl.DataFrame) -> int:
    """COPY the frame's columns into the table's columns of the same names. Returns the number of rows.

    NULL is an unquoted nothing; FHIR has no empty strings, so that nothing else can be meant.
    """
    if frame.is_empty():
        return 0
    buffer = io.BytesIO()
    frame.write_csv(buffer, include_header=False)
    columns = ", ".join(f'"{name}"' for name in frame.columns)
    view = buffer.getbuffer()
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT csv)") as copy:
        for start in range(0, len(view), _BLOCK):
            copy.write(view[start : start + _BLOCK])
    return frame.height


def read_frame(
    connection: psycopg.Connection,
    query: str,
    schema: Mapping[str, Any],
    parameters: Sequence[Any] = (),
) -> pl.DataFrame:
    """The result of a query as a frame of the given columns and types, through COPY: no Python object a row."""
    buffer = io.BytesIO()
    with connection.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT csv)", parameters) as copy:
        for block in copy:
            buffer.write(block)
    if not buffer.tell():
        return pl.DataFrame(schema=dict(schema))
    buffer.seek(0)
    return pl.read_csv(buffer, has_header=False, schema=dict(schema))


def temporary_table(connection: psycopg.Connection, name: str, frame: pl.DataFrame) -> None:
    """A temporary table with the frame's rows, analysed, gone at the end of the transaction."""
    columns = ", ".join(f'"{column}" {_sql_type(kind)}' for column, kind in frame.schema.items())
    connection.execute(f"CREATE TEMP TABLE {name} ({columns}) ON COMMIT DROP")
    copy_frame(connection, f"pg_temp.{name}", frame)
    connection.execute(f"ANALYZE pg_temp.{name}")


def _sql_type(kind: pl.DataType) -> str:
    if kind.is_integer():
        return "bigint"
    if kind.is_float():
        return "numeric"
    if kind == pl.Date:
        return "date"
    if kind == pl.Boolean:
        return "boolean"
    return "timestamp" if kind == pl.Datetime else "text"
