"""Files that people bring back, as lines of one shape: Usagi's saved file, source_to_concept_map, and the plain table.

Comma, semicolon or tab, quoted or not, with a BOM or without, UTF-8 or UTF-16: which it is, the file itself says. What the
lines mean for the warehouse is decided in `importing`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from pipeline.core.errors import UsageError
from pipeline.core.spreadsheet_cells import unguarded

__all__ = ["MapFile", "MapLine", "Refusal", "Style", "read_map_file"]

Style = Literal["usagi", "stcm", "plain"]

#: What the formats are known by; column names are compared without case, and Usagi's without `ADD_INFO:`.
_NEEDED: Mapping[Style, frozenset[str]] = {
    "usagi": frozenset(("sourcecode", "conceptid", "mappingstatus")),
    "stcm": frozenset(("source_code", "source_vocabulary_id", "target_concept_id")),
    "plain": frozenset(("source_code", "source_system", "target_concept_id")),
}
_DELIMITERS = (",", ";", "\t")
_ADDED = "add_info:"
_KINDS = {
    **dict.fromkeys(("", "to", "maps_to", "maps to", "event"), "to"),
    **dict.fromkeys(("value", "maps_to_value", "maps to value"), "value"),
    **dict.fromkeys(("unit", "maps_to_unit", "maps to unit"), "unit"),
}
_STATUSES = {
    **{name: name for name in ("approved", "unchecked", "flagged", "ignored")},
    "invalid_target": "flagged",
    "no map": "approved",
    "no_map": "approved",
}
_ADVICE = (
    "Give the file that Usagi saves, an export of source_to_concept_map, or what `epic-omop unmapped export` writes,"
    " with its header line, as comma-, semicolon- or tab-separated text."
)


@dataclass(frozen=True)
class Refusal:
    """A line that is not taken, and why; `line` is 1-based in the file."""

    line: int
    #: None: the line has none, or it is a text
    code: str | None
    reason: str


@dataclass(frozen=True)
class MapLine:
    """What a line says about a source. None and empty: it does not say."""

    line: int
    site: str | None
    system: str | None
    code: str
    name: str | None
    #: None: nobody has chosen one yet; 0: reviewed, no map
    target: int | None
    kind: str
    status: str
    equivalence: str | None
    mapping_type: str | None
    reviewer: str | None
    reviewed_at: datetime | None
    comment: str | None
    source_concept_id: int | None


@dataclass(frozen=True)
class MapFile:
    """A file as it was read."""

    style: Style
    lines: tuple[MapLine, ...]
    refusals: tuple[Refusal, ...]
    #: lines that say nothing: without a target, or ended
    empty: int


def read_map_file(path: Path) -> MapFile:
    """Raises UsageError for a file that cannot be read or is none of the formats; a line that is broken is refused alone."""
    text, skipped = _without_hint(_text(path))
    header, delimiter, style = _header(text, path)
    lines: list[MapLine] = []
    refusals: list[Refusal] = []
    empty = 0
    for number, cells in _rows(text, delimiter, path, skipped):
        if len(cells) != len(header):
            refusals.append(Refusal(number, None, f"it has {len(cells)} columns, the header has {len(header)}"))
            continue
        row = {name: unguarded(cell.strip()) for name, cell in zip(header, cells, strict=True)}
        try:
            line = _line(number, row, style)
        except ValueError as error:
            refusals.append(Refusal(number, row.get("source_code") or row.get("sourcecode"), str(error)))
            continue
        if line is None:
            empty += 1
        else:
            lines.append(line)
    return MapFile(style, tuple(lines), tuple(refusals), empty)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.", _ADVICE) from error
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path.name} is not UTF-8: byte {error.start} cannot be read.",
            "Save it as CSV in UTF-8; Excel calls it `CSV UTF-8`, its plain `CSV` is in the computer's own encoding.",
        ) from error
    if "\0" in text:
        raise UsageError(f"{path.name} is no text file.", _ADVICE)
    return text


def _without_hint(text: str) -> tuple[str, int]:
    """The text without the line `sep=;` by which Excel is made to take a delimiter, and the lines that were taken off."""
    hint = re.match(r"sep=.(\r\n|\r|\n)", text, re.IGNORECASE)
    return (text[hint.end() :], 1) if hint else (text, 0)


def _header(text: str, path: Path) -> tuple[list[str], str, Style]:
    found: list[str] = []
    for delimiter in _DELIMITERS:
        names = [name.strip().lower() for name in _first_cells(text, delimiter)]
        found = max(found, names, key=len)
        header = [_column(name) for name in names]
        for style, needed in _NEEDED.items():
            if needed <= set(header):
                if len(set(header)) != len(header):
                    twice = sorted({name for name in header if header.count(name) > 1})
                    raise UsageError(f"{path.name} has a column twice: {', '.join(twice)}.", _ADVICE)
                return header, delimiter, style
    # What else the first line says is not repeated: of a file of another kind it may be about a patient.
    known = set().union(*_NEEDED.values())
    shown = ", ".join(name for name in map(_column, found) if name in known) or "none of their columns"
    raise UsageError(f"{path.name} is none of the formats that are known; its header has {shown}.", _ADVICE)


def _first_cells(text: str, delimiter: str) -> list[str]:
    """The cells of the first line. A file that is no table has none."""
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error:
        return []


#: Columns of older files, by the names of newer ones.
_RENAMED = {"targetconceptid": "conceptid"}


def _column(name: str) -> str:
    plain = name.removeprefix(_ADDED)
    return _RENAMED.get(plain, plain)


def _rows(text: str, delimiter: str, path: Path, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells; empty lines are passed over. `skipped`: lines of the file before the text."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        next(reader)
        while True:
            number = reader.line_num + 1 + skipped
            cells = next(reader)
            if any(cell.strip() for cell in cells):
                yield number, cells
    except StopIteration:
        return
    except csv.Error as error:
        raise UsageError(f"{path.name}:{reader.line_num + skipped}: {error}.", _ADVICE) from error


def _line(number: int, row: Mapping[str, str], style: Style) -> MapLine | None:
    """None: the line says nothing. Raises ValueError with the reason for one that cannot be understood."""
    code = row["sourcecode" if style == "usagi" else "source_code"]
    if not code:
        raise ValueError("it has no source code")
    if style == "usagi":
        return _of_usagi(number, code, row)
    return _of_table(number, code, row) if style == "stcm" else _of_plain(number, code, row)


def _of_usagi(number: int, code: str, row: Mapping[str, str]) -> MapLine | None:
    status = _status(row["mappingstatus"] or "unchecked")
    target = _concept(row["conceptid"] or "0")
    if target == 0 and status not in {"approved", "ignored"}:
        return None
    mapping_type = row.get("mappingtype") or None
    return MapLine(
        number,
        row.get("site") or None,
        row.get("source_system"),
        code,
        row.get("sourcename") or None,
        target,
        _kind(mapping_type),
        status,
        row.get("equivalence") or None,
        mapping_type,
        row.get("statussetby") or row.get("createdby") or None,
        _moment(row.get("statusseton") or row.get("createdon") or ""),
        row.get("comment") or None,
        None,
    )


def _of_table(number: int, code: str, row: Mapping[str, str]) -> MapLine | None:
    target = _concept(row["target_concept_id"] or "0")
    if target == 0 or row.get("invalid_reason"):  # tools write codes that nobody has mapped yet with 0
        return None
    return MapLine(
        number,
        None,
        row["source_vocabulary_id"] or None,
        code,
        row.get("source_code_description") or None,
        target,
        "to",
        "approved",
        None,
        None,
        None,
        None,
        None,
        _concept(row.get("source_concept_id") or "0") or None,
    )


def _of_plain(number: int, code: str, row: Mapping[str, str]) -> MapLine | None:
    status = _status(row.get("status") or "approved")
    target = row["target_concept_id"]
    if not target and status != "ignored":
        return None
    return MapLine(
        number,
        row.get("site") or None,
        row["source_system"],
        code,
        row.get("source_name") or None,
        _concept(target or "0"),
        _kind(row.get("kind")),
        status,
        row.get("equivalence") or None,
        row.get("kind") or None,
        row.get("reviewer") or None,
        _moment(row.get("reviewed_at") or ""),
        row.get("comment") or None,
        None,
    )


def _status(given: str) -> str:
    status = _STATUSES.get(given.strip().lower())
    if status is None:
        raise ValueError(f"its status is {given[:30]!r}, which is none of {', '.join(sorted(_STATUSES))}")
    return status


def _kind(given: str | None) -> str:
    kind = _KINDS.get((given or "").strip().lower())
    if kind is None:
        raise ValueError(
            f"its mapping type is {(given or '')[:30]!r}; local maps know MAPS_TO, MAPS_TO_VALUE and MAPS_TO_UNIT"
        )
    return kind


#: Concept ids are integers of 32 bits.
_MOST = 2**31 - 1


def _concept(given: str) -> int:
    plain = given.removesuffix(".0")  # a column of numbers, as some tools write it
    if not (plain.isascii() and plain.isdigit() and int(plain) <= _MOST):
        raise ValueError(f"its concept id is {given[:30]!r}, which is no whole number")
    return int(plain)


def _moment(given: str) -> datetime | None:
    """Usagi writes milliseconds since 1970, others a date or time of ISO 8601; None where it is neither."""
    try:
        if given.isdigit():
            return datetime.fromtimestamp(int(given) / 1000, UTC)
        found = (
            datetime.fromisoformat(given) if len(given) > len("2026-01-01") else _midnight(date.fromisoformat(given))
        )
    except (ValueError, OverflowError, OSError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
