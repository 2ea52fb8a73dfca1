"""Frames as PostgreSQL's COPY takes them in binary format: built by numpy, block by block, no Python object a row.

The server reads the binary format in about half of the time of the text format, and numpy writes it faster than a CSV
writer writes text. It is bound to the types of the table's columns, so that `binary_rows` answers None where a column
is not one of the known pairs, or where a value has no place in it: the text format is for those, and its errors.

Layout: https://www.postgresql.org/docs/current/sql-copy.html, section "Binary Format"; numbers are big-endian.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

__all__ = ["Block", "binary_rows"]

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"

#: Rows that are laid out at a time: their slots stay in the processor's cache.
_BLOCK_ROWS = 2048

#: Longer texts would make the slots of all rows as wide.
_LONGEST_TEXT = 512

#: Days and microseconds from 1970, where polars counts from, to 2000, where PostgreSQL does.
_EPOCH_DAYS = 10_957
_EPOCH_MICROSECONDS = _EPOCH_DAYS * 86_400_000_000

_INTEGERS = {"smallint": "i2", "integer": "i4", "bigint": "i8"}
_TEXTS = {"text", "character varying"}
_INSTANTS = {
    (pl.Datetime("us"), "timestamp without time zone"),
    (pl.Datetime("us", "UTC"), "timestamp with time zone"),
}

#: Decimals of this many digits are each another double, so that the shortest text of a double is the decimal.
_EXACT_BELOW = 10**15

_NUMERIC_HEAD = ("groups", "weight", "sign", "scale")

Array = np.ndarray[Any, Any]
Block = bytes | memoryview


@dataclass(frozen=True)
class _Column:
    """One column's values. `widths`: bytes of each value, -1 for NULL; None: all are as wide as the slot."""

    #: one of fixed width a row, or the bytes of all texts one after the other
    values: Array
    widths: Array | None
    #: bytes of the widest value, -1 where all are NULL
    slot: int
    is_text: bool = False


def binary_rows(frame: pl.DataFrame, types: Mapping[str, str]) -> list[Block] | None:
    """The frame's rows as the blocks of one binary COPY, or None: see above.

    `types`: column → PostgreSQL type as `format_type(oid, NULL)` names it.
    """
    columns = []
    for series in frame.iter_columns():
        column = _column(series, types.get(series.name, ""))
        if column is None:
            return None
        columns.append(column)
    return [_HEADER, *_blocks(columns, frame.height), _TRAILER]


def _column(series: pl.Series, kind: str) -> _Column | None:
    nulls = series.null_count()
    if nulls == series.len():
        return _Column(np.empty(0), None, -1)
    if series.dtype == pl.String:
        return _texts(series) if kind in _TEXTS else None
    values = _fixed(series, kind)
    if values is None:
        return None
    width = values.dtype.itemsize
    widths = np.where(series.is_null().to_numpy(), np.int32(-1), np.int32(width)) if nulls else None
    return _Column(values, widths, width)


def _texts(series: pl.Series) -> _Column | None:
    widths = series.str.len_bytes().cast(pl.Int32).fill_null(-1).to_numpy()
    longest = int(widths.max())
    if longest > _LONGEST_TEXT:
        return None
    joined = series.str.join("").item().encode()
    return _Column(np.frombuffer(joined, np.uint8), widths, longest, is_text=True)


def _fixed(series: pl.Series, kind: str) -> Array | None:
    """Values of one width, big-endian; what stands where a NULL is does not matter."""
    dtype = series.dtype
    found: Array | None = None
    if dtype.is_integer() and kind in _INTEGERS:
        found = _integers(series, _INTEGERS[kind])
    elif dtype == pl.Date and kind == "date":
        found = (series.to_physical().fill_null(0).to_numpy() - np.int32(_EPOCH_DAYS)).astype(">i4")
    elif (dtype, kind) in _INSTANTS:
        found = (series.to_physical().fill_null(0).to_numpy() - np.int64(_EPOCH_MICROSECONDS)).astype(">i8")
    elif dtype == pl.Boolean and kind == "boolean":
        found = series.fill_null(value=False).to_numpy().astype("u1")
    elif dtype == pl.Float64 and kind == "numeric":
        values = series.fill_null(0.0).to_numpy()
        found = _numerics(values, 1)
        if found is None:
            found = _numerics(values, 2)
    return found


def _integers(series: pl.Series, kind: str) -> Array | None:
    values = series.fill_null(0).to_numpy()
    limits = np.iinfo(kind)
    if values.dtype.itemsize > limits.bits // 8 and (values.min() < limits.min or values.max() > limits.max):
        return None
    return values.astype(f">{kind}") if values.dtype.kind == "i" else None


def _numerics(values: Array, fraction_groups: int) -> Array | None:
    """Doubles as the decimals that their shortest texts are, with at least one decimal place as in the text format.

    PostgreSQL's numeric is groups of four decimal digits: here two before the point and one or two after it. The server
    drops groups of zeros at both ends itself. None when a value has more decimal places or digits, or is not a number.
    """
    places = 4 * fraction_groups
    with np.errstate(invalid="ignore", over="ignore"):  # what overflows is infinite, and no such decimal
        scaled = np.rint(np.abs(values) * 10**places)
        if not (scaled < min(_EXACT_BELOW, 10 ** (8 + places))).all():
            return None
        if not (scaled / 10**places == np.abs(values)).all():
            return None
    units = scaled.astype(np.int64)
    scale = np.full(len(values), places, np.int16)
    for digits in range(1, places):
        scale -= units % 10**digits == 0
    names = [*_NUMERIC_HEAD, *(f"group{number}" for number in range(2 + fraction_groups))]
    found = np.empty(len(values), np.dtype([(name, ">u2") for name in names]))
    found["groups"], found["weight"], found["scale"] = 2 + fraction_groups, 1, scale
    found["sign"] = np.where((values < 0) & (units > 0), 0x4000, 0)
    for number in range(1 + fraction_groups, -1, -1):
        units, found[f"group{number}"] = np.divmod(units, 10**4)
    return found


class _Layout:
    """Every value has a slot of its column's widest one; what is shorter is cut out when a block is complete."""

    def __init__(self, columns: list[_Column]) -> None:
        self.columns = columns
        self.starts = [_starts(column) if column.is_text else None for column in columns]
        self.slots = []
        end = 2
        for column in columns:
            self.slots.append(slice(end + 4, end + 4 + max(column.slot, 0)))
            end = self.slots[-1].stop
        self.bytes = end
        #: what is the same in all rows
        self.row = np.zeros(end, np.uint8)
        self.row[:2].view(">i2")[:] = len(columns)
        for column, slot in zip(columns, self.slots, strict=True):
            self.row[slot.start - 4 : slot.start].view(">i4")[:] = column.slot
        self.is_fixed = all(column.widths is None for column in columns)
        # Kept from block to block: so much memory would be new to the process each time.
        self._slots = np.empty((_BLOCK_ROWS, end), np.uint8)
        self._used = np.empty((_BLOCK_ROWS, end), np.bool_)

    def block(self, start: int, stop: int) -> Block:
        """These rows, without a header."""
        slots, used = self._slots[: stop - start], self._used[: stop - start]
        slots[:] = self.row
        if not self.is_fixed:
            used[:] = True
        for column, slot, starts in zip(self.columns, self.slots, self.starts, strict=True):
            if starts is None and column.slot > 0:
                _field(slots, slot, column.values.dtype)[:] = column.values[start:stop]
            if column.widths is None:
                continue
            widths = column.widths[start:stop]
            _field(slots, slice(slot.start - 4, slot.start), np.dtype(">i4"))[:] = widths
            narrowest, widest = int(widths.min()), int(widths.max())
            if narrowest == widest:  # such as ids, or a block without NULL: no need to look at each row
                used[:, slot.start + max(widest, 0) : slot.stop] = False
                if starts is not None and widest > 0:
                    texts = column.values[starts[start] : starts[stop]].reshape(-1, widest)
                    slots[:, slot.start : slot.start + widest] = texts
            elif starts is None:
                used[:, slot] = (widths >= 0)[:, None]
            else:
                filled = np.less(np.arange(column.slot, dtype=np.int32), widths[:, None], out=used[:, slot])
                slots[:, slot][filled] = column.values[starts[start] : starts[stop]]
        return slots.tobytes() if self.is_fixed else slots[used].data


def _blocks(columns: list[_Column], rows: int) -> Iterator[Block]:
    layout = _Layout(columns)
    for start in range(0, rows, _BLOCK_ROWS):
        yield layout.block(start, min(start + _BLOCK_ROWS, rows))


def _field(slots: Array, slot: slice, dtype: np.dtype[Any]) -> Array:
    """The rows' values in one slot, to be written."""
    return np.ndarray(len(slots), dtype, slots, slot.start, (slots.strides[0],))


def _starts(column: _Column) -> Array:
    """Where each text begins in the bytes of all, and where the last ends."""
    assert column.widths is not None, "texts differ in width"
    return np.concatenate([[0], np.cumsum(np.maximum(column.widths, 0), dtype=np.int64)])
