"""The one component of all tables: nothing that matters is cut at any width, and programs get values."""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import UTC, date, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.output import (
    Column,
    Kind,
    Listing,
    _cells_lines,
    listing_as_json,
    print_csv,
    print_json,
    print_listing,
    show,
)
from pipeline.commands.terminal import Terminal
from pipeline.core.errors import UsageError
from pipeline.core.spreadsheet_cells import guarded, unguarded

WIDTHS = (20, 60, 80, 100, 200)
_NIGHT = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)


def printed(listing: Listing, width: int | None) -> str:
    """In a terminal of so many columns; None: into a pipe."""
    stream = io.StringIO()
    options: dict[str, Any] = {} if width is None else {"width": width, "force_terminal": True}
    print_listing(Terminal(file=stream, color_system=None, highlight=False, **options), listing)
    return stream.getvalue()


def letters(listing: Listing) -> Listing:
    listing.add(
        17,
        "north",
        "files/Observation/0001.ndjson.gz:104",
        "json_invalid",
        "The line is no JSON: it ends early.",
        1_234_567,
    )
    listing.add(18, "south", "files/Patient/0001.ndjson.gz:1", "reference_missing", "x " * 90, 0)
    return listing


_COLUMNS = (
    Column("id", "id", "number"),
    Column("site", "site", "code"),
    Column("place", "where", "path"),
    Column("code", "code", "code", {"json_invalid": "red"}),
    Column("reason", "reason"),
    Column("rows", "rows", "count"),
)


def test_where_there_is_room_it_is_a_table_and_otherwise_each_row_is_stacked() -> None:
    wide = printed(letters(Listing("Open", _COLUMNS)), 120).split("\n")
    assert wide[0] == "Open"
    assert [word for word in wide[1].split(" ") if word] == ["id", "site", "where", "code", "reason", "rows"]
    assert max(map(len, wide)) <= 120
    narrow = printed(letters(Listing("Open", _COLUMNS)), 80).split("\n")
    assert narrow[1:8] == [
        "id:     17",
        "site:   north",
        "where:  files/Observation/0001.ndjson.gz:104",
        "code:   json_invalid",
        "reason: The line is no JSON: it ends early.",
        "rows:   1,234,567",
        "",
    ]
    assert "reason: " + ("x " * 36).strip() in narrow
    small = Listing("", (Column("name", "name"), Column("rows", "rows", "count")), [("person", 12)], total=("all", 12))
    assert printed(small, 60).split("\n")[0].split() == ["name", "rows"], "what has room is no stack"


def test_a_pipe_gets_a_line_for_each_row() -> None:
    lines = printed(letters(Listing("Open", _COLUMNS)), None).split("\n")
    assert len(lines) == 6
    assert lines[2].split("  ")[0].strip() == "17"
    assert ("x " * 90).strip() in lines[3]


_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Zl", "Zp")), max_size=120)
_VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    "text": st.text("ab ", max_size=300),
    "code": _TEXTS | st.lists(_TEXTS, max_size=3),
    "path": st.text("abc/.-ü", min_size=1, max_size=250),
    "count": st.integers(0, 10**15),
    "number": st.integers(-(10**9), 10**9),
    "share": st.floats(0, 1),
    "size": st.integers(0, 10**16),
    "time": st.datetimes(timezones=st.just(UTC), min_value=datetime(1900, 1, 1))  # noqa: DTZ001 - hypothesis adds the zone
    | st.dates(min_value=date(1900, 1, 1)),
}


@st.composite
def listings(draw: st.DrawFn) -> Listing:
    kinds = draw(st.lists(st.sampled_from(get_args(Kind)), min_size=1, max_size=7))
    columns = [
        Column(f"c{number}", draw(st.text("abc ", min_size=1, max_size=30)), kind) for number, kind in enumerate(kinds)
    ]
    row = st.tuples(*(st.none() | _VALUES[kind] for kind in kinds))
    return Listing("title", columns, draw(st.lists(row, min_size=1, max_size=4)), stacked=draw(st.booleans()))


@given(listings(), st.sampled_from([*WIDTHS, None]))
def test_codes_paths_and_numbers_are_whole_at_every_width(listing: Listing, width: int | None) -> None:
    lines = printed(listing, width).split("\n")
    for row in listing.rows:
        for column, value in zip(listing.columns, row, strict=True):
            for text in [] if column.kind == "text" else _cells_lines(column, value):
                assert any(text.strip() in line for line in lines), (text, lines)
    if width is None:
        assert len(lines) == len(listing.rows) + 4


def document_of(monkeypatch: pytest.MonkeyPatch, write: Any, *arguments: Any) -> str:
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        write(*arguments)
    return stream.getvalue()


def test_programs_get_values(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = (Column("at", "at", "time"), Column("share", "share", "share"), Column("codes", "codes", "code"))
    listing = Listing("t", columns, [(_NIGHT, 0.5, ["=1+1", "b"]), (None, None, None)])
    assert json.loads(document_of(monkeypatch, print_json, listing_as_json(listing))) == [
        {"at": "2026-03-01T02:30:00+00:00", "share": 0.5, "codes": ["=1+1", "b"]},
        {"at": None, "share": None, "codes": None},
    ]
    written = document_of(monkeypatch, print_csv, listing)
    assert list(csv.reader(io.StringIO(written))) == [
        ["at", "share", "codes"],
        ["2026-03-01T02:30:00+00:00", "0.5", "'=1+1; b"],
        ["", "", ""],
    ]
    with pytest.raises(TypeError):
        print_json({"at": datetime(2026, 3, 1)})  # noqa: DTZ001 - that is the point
    with pytest.raises(UsageError):
        show(Terminal(), listing, as_json=True, as_csv=True)


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1"]
)
def test_no_cell_is_a_formula(text: str) -> None:
    assert guarded(text).startswith("'")
    assert unguarded(guarded(text)) == text


@given(st.text("=+-@'a1\t＝", max_size=6))
def test_the_apostrophe_comes_off_again(text: str) -> None:
    assert unguarded(guarded(text)) == text


def test_a_negative_number_is_no_formula() -> None:
    assert [guarded(text) for text in ("-1", "-0.5", "-1-1")] == ["-1", "-0.5", "'-1-1"]
