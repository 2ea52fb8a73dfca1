"""The one way in which commands show tables, to people and to programs.

A table is data first: columns of a kind, and rows of plain values. In a terminal it is a table where its rows have room, and
otherwise each row is stacked, a line for each of its values: codes, paths, numbers and times are whole at every width. A
pipe gets one line for each row, whole. `--json` and `--csv` give the values themselves. What text reaches a terminal, and
how, belongs in `terminal.py`; the tables of a load in `tables.py`.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Annotated, Any, Literal

import orjson
import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len

from pipeline.commands.terminal import Table, Terminal, Text, bold, document, lines, styled
from pipeline.core.errors import UsageError
from pipeline.core.spreadsheet_cells import guarded
from pipeline.core.visible_text import shown

__all__ = [
    "Column",
    "CsvOption",
    "JsonOption",
    "Kind",
    "Listing",
    "listing_as_json",
    "print_csv",
    "print_json",
    "print_listing",
    "print_paragraph",
    "refuse_both",
    "show",
    "words_console",
]

#: text: sentences and names, which may go on in the next line; code: codes, ids, names that somebody copies; path: files
#: and URLs; count and number: whole and other numbers; share: 0 to 1; size: bytes; time: a date, or a time with its zone.
Kind = Literal["text", "code", "path", "count", "number", "share", "size", "time"]

Value = str | int | float | date | None | Sequence[Any]

JsonOption = Annotated[bool, typer.Option("--json", help="The values as one JSON document (docs/output.md).")]
CsvOption = Annotated[bool, typer.Option("--csv", help="The table as CSV, for a spreadsheet (docs/output.md).")]

#: From this width on a sentence may be broken within a table; below, the whole table is stacked instead.
_WIDE = 100
#: A column of sentences that is narrower than this is no pleasure to read.
_NARROWEST_TEXT = 24
_RIGHT = ("count", "number", "share", "size")
_NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """`key` names it for programs and does not change; `label` is its heading. `styles`: value → one of rich's words."""

    key: str
    label: str
    kind: Kind = "text"
    styles: Mapping[str, str] = field(default_factory=dict)


class Listing:
    """A table: `rows` have a value for each column, in their order. A value may be several (a list), a line for each.

    `total` is a last row for people alone. `stacked`: never drawn as a table, for records of few rows and many columns.
    """

    def __init__(
        self,
        title: str,
        columns: Sequence[Column],
        rows: Iterable[Sequence[Value]] = (),
        *,
        total: Sequence[Value] | None = None,
        stacked: bool = False,
    ) -> None:
        self.title, self.columns, self.total, self.stacked = title, columns, total, stacked
        self.rows = list(rows)

    def add(self, *values: Value) -> None:
        if len(values) != len(self.columns):
            raise ValueError(f"{len(values)} values for {len(self.columns)} columns")
        self.rows.append(values)


def show(console: Terminal, listing: Listing, *, as_json: bool = False, as_csv: bool = False) -> None:
    """The only table of a command: for people, or as one of the documents. Raises UsageError where both are asked for."""
    refuse_both(as_json=as_json, as_csv=as_csv)
    if as_json:
        print_json(listing_as_json(listing))
    elif as_csv:
        print_csv(listing)
    else:
        print_listing(console, listing)


def words_console(*, as_document: bool, highlight: bool = False) -> Terminal:
    """Where sentences and bars go: standard error, where standard output is one document."""
    return Terminal(stderr=as_document, highlight=highlight)


def refuse_both(*, as_json: bool, as_csv: bool) -> None:
    """Raises UsageError where two documents are asked for."""
    if as_json and as_csv:
        raise UsageError("--json and --csv contradict each other.", "Give one of them.")


def print_json(content: Any) -> None:
    """One document. Numbers are numbers, times are ISO 8601 with their zone: a time without one is refused (TypeError)."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS
    document(orjson.dumps(content, default=_as_json, option=options).decode() + "\n")


def listing_as_json(listing: Listing) -> list[dict[str, Any]]:
    """A dictionary for each row, by the keys of the columns."""
    keys = [column.key for column in listing.columns]
    return [dict(zip(keys, row, strict=True)) for row in listing.rows]


def print_csv(listing: Listing) -> None:
    """A header of keys and a line for each row. Cells that a spreadsheet would take for a formula begin with '."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.key for column in listing.columns])
    writer.writerows([_csv_cell(value) for value in row] for row in listing.rows)
    document(out.getvalue())


def print_listing(console: Terminal, listing: Listing) -> None:
    """For people, as wide as the terminal is; into a pipe one line for each row."""
    rows = [*listing.rows, *([] if listing.total is None else [listing.total])]
    cells = [[_cells_lines(column, value) for column, value in zip(listing.columns, row, strict=True)] for row in rows]
    if not console.is_terminal:
        _print_lines(console, listing, cells)
        return
    widths = None if listing.stacked else _widths(listing.columns, cells, console.width)
    if widths is None:
        _print_stacked(console, listing, cells)
    else:
        _print_table(console, listing, cells, widths)


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise TypeError("a time without its zone")
        return value.isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(type(value).__name__)


def _csv_cell(value: Value) -> str | int | float:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return guarded("; ".join(map(_plain, value)) if _is_several(value) else _plain(value))  # type: ignore[arg-type]
    return value


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)


def _is_several(value: Value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _cells_lines(column: Column, value: Value) -> list[str]:
    """The cell as it is shown: one text for each of its lines, at least one."""
    if _is_several(value):
        return [_cell(column.kind, one) for one in value] or [_NOTHING]  # type: ignore[union-attr]
    return [_cell(column.kind, value)]


def _cell(kind: Kind, value: Any) -> str:
    if value is None or value == "":
        return _NOTHING
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M %Z}".strip()
    if isinstance(value, str | date) or kind not in _FORMATS:
        return shown(value)
    return _FORMATS[kind](value)


def _size(count: int) -> str:
    """In the largest unit of which there is one or more; below 1 kB exactly."""
    if count < 1000:
        return f"{count} bytes"
    number, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:,.1f} {unit}"


#: How numbers of a kind are shown; what is not here is shown as it is.
_FORMATS: dict[Kind, Callable[[Any], str]] = {
    "count": lambda value: f"{value:,}" if value else "·",
    "share": lambda value: f"{100 * value:.1f} %",
    "size": _size,
}


def _widths(columns: Sequence[Column], cells: list[list[list[str]]], width: int) -> list[int] | None:
    """The width of each column, so that nothing but sentences and headings is broken; None where there is no room for that."""
    widest = [
        max((cell_len(line) for row in cells for line in row[number]), default=0) for number in range(len(columns))
    ]
    room = width - len(columns) + 1  # a space between two
    for headings in (lambda label: [label], str.split):  # whole, and word by word
        widths = [
            max(wide, *map(cell_len, headings(column.label) or [""]), 1)
            for wide, column in zip(widest, columns, strict=True)
        ]
        if sum(widths) <= room:
            return widths
    texts = [number for number, column in enumerate(columns) if column.kind == "text"]
    left = room - sum(widths) + sum(widths[number] for number in texts)
    if width < _WIDE or left < sum(min(widths[number], _NARROWEST_TEXT) for number in texts):
        return None
    texts.sort(key=widths.__getitem__)  # the narrow ones first: what they leave is for the others
    for place, number in enumerate(texts):
        widths[number] = min(widths[number], left // (len(texts) - place))
        left -= widths[number]
    return widths


def _print_table(console: Terminal, listing: Listing, cells: list[list[list[str]]], widths: list[int]) -> None:
    second_space = int(sum(widths) + 2 * len(widths) <= console.width)
    table = Table(box=SIMPLE_HEAD, padding=(0, second_space, 0, 0), pad_edge=False, show_edge=False)
    for column, width in zip(listing.columns, widths, strict=True):
        table.add_column(
            "\n".join(textwrap.wrap(column.label, width, break_long_words=False)),
            justify="right" if column.kind in _RIGHT else "left",
            no_wrap=column.kind != "text",
            overflow="fold",
            width=width,
        )
    for number, row in enumerate(cells):
        if listing.total is not None and number == len(cells) - 1:
            table.add_section()
        table.add_row(*map(_styled_cell, listing.columns, row))
    if listing.title:
        console.print(bold(listing.title))
    console.print(table)
    console.print()


def _styled_cell(column: Column, cell: list[str]) -> Text:
    style = column.styles.get(cell[0]) if len(cell) == 1 else None
    return styled(cell[0], style) if style else lines(cell)


def _print_stacked(console: Terminal, listing: Listing, cells: list[list[list[str]]]) -> None:
    """Label and value in a line; what is longer than the terminal is wide is for the terminal to break, unless it is text."""
    if listing.title:
        console.print(bold(listing.title))
    indent = max(cell_len(column.label) for column in listing.columns) + 2
    for row in cells:
        for column, cell in zip(listing.columns, row, strict=True):
            label = f"{column.label}:".ljust(indent)
            for text in _broken(column, cell, console.width - indent):
                console.print(Text.assemble((label, "bold"), _styled_cell(column, [text])), soft_wrap=True)
                label = " " * indent
        console.print()


def _broken(column: Column, cell: list[str], room: int) -> list[str]:
    if column.kind != "text" or room < _NARROWEST_TEXT:
        return cell
    return [
        part
        for text in cell
        for part in textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [text]
    ]


def _print_lines(console: Terminal, listing: Listing, cells: list[list[list[str]]]) -> None:
    """A line for each row, its columns below each other: for `grep`, and for a log."""
    table = [[column.label for column in listing.columns]]
    table += [[_one_line(column, cell) for column, cell in zip(listing.columns, row, strict=True)] for row in cells]
    widths = [max(map(cell_len, texts)) for texts in zip(*table, strict=True)]
    if listing.title:
        console.print(Text(listing.title), soft_wrap=True)
    for row in table:
        padded = []
        for column, text, width in zip(listing.columns, row, widths, strict=True):
            filler = " " * (width - cell_len(text))
            padded.append(filler + text if column.kind in _RIGHT else text + filler)
        console.print(Text("  ".join(padded).rstrip()), soft_wrap=True)
    if listing.title:  # what follows is another table, or a sentence
        console.print()


def _one_line(column: Column, cell: list[str]) -> str:
    return (" " if column.kind == "text" else "; ").join(cell)


def print_paragraph(console: Terminal, text: str, *, indent: int, first: str = "", style: str = "") -> None:
    """A text whose further lines stand below its first one; `first` stands before that. Into a pipe one line."""
    parts = [text] if not console.is_terminal else _broken(Column("", ""), [shown(text)], console.width - indent)
    label = first.ljust(indent)
    for part in parts:
        console.print(Text.assemble(label, (shown(part), style)), soft_wrap=True)
        label = " " * indent
