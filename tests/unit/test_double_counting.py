"""Which records have a more definite one in their place: against each compared with each."""

from __future__ import annotations

from datetime import date, timedelta

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.publication.double_counting import ENCOUNTER, ORDER, RECORD_SCHEMA, covered

_FIRST = date(2024, 1, 1)
_INGREDIENTS = pl.DataFrame(
    {"concept_id": [10, 10, 11, 12], "substance": [1, 2, 2, 3]}, schema={"concept_id": pl.Int32, "substance": pl.Int32}
)
_SUBSTANCES = {10: {1, 2}, 11: {2}, 12: {3}, 13: {13}, 0: set[int]()}

_Record = tuple[object, ...]


def _record(draw: st.DrawFn) -> _Record:
    link = draw(st.sampled_from((ORDER, ENCOUNTER)))
    linked, table = draw(st.integers(1, 2)), draw(st.sampled_from(("drug_exposure", "device_exposure")))
    if link == ORDER:
        return (link, linked, table, draw(st.integers(1, 2)), None, None, None)
    first = _FIRST + timedelta(draw(st.integers(0, 8)))
    last = first + timedelta(draw(st.integers(0, 4)))
    return (link, linked, table, draw(st.integers(1, 2)), draw(st.sampled_from(sorted(_SUBSTANCES))), first, last)


_records = st.lists(st.composite(_record)(), max_size=25)


def _frame(records: list[_Record], precedence: int) -> pl.DataFrame:
    rows = [(number // 2, precedence, *record) for number, record in enumerate(records)]  # two rows a resource
    return pl.DataFrame(rows, schema=RECORD_SCHEMA, orient="row")


def _is_in_place(better: _Record, record: _Record) -> bool:
    if better[:3] != record[:3]:
        return False
    if record[0] == ORDER:
        return True
    one, other = _SUBSTANCES[record[4]], _SUBSTANCES[better[4]]  # type: ignore[index]
    share_a_day = record[5] <= better[6] and better[5] <= record[6]  # type: ignore[operator]
    return record[3] == better[3] and bool(one & other) and share_a_day


@given(records=_records, better=_records)
def test_covered_is_each_compared_with_each(records: list[_Record], better: list[_Record]) -> None:
    found = covered(_frame(records, 3), _frame(better, 1), _INGREDIENTS).rows()
    expected = {
        (number // 2, record[2])
        for number, record in enumerate(records)
        if any(_is_in_place(other, record) for other in better)
    }
    assert sorted(found) == sorted(expected)
