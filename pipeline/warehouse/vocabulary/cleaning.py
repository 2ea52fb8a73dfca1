"""What is wrong inside the files of a download, made loadable while they stream by, and counted.

Lines that are as they should be pass untouched: a block of them costs a few passes over its bytes. Here too is what
`--only` leaves out. Raises nothing: what cannot be helped is refused by the server, with its line.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from omop_schema import cdm
from pipeline.warehouse.vocabulary.download import SourceFile

__all__ = ["CleanedLines", "Repair", "SelectedConcepts"]

_BLOCK = 1 << 20
#: A piece of a line that has waited this long for the rest of it is no line.
_LONGEST_LINE = 1 << 17

#: Texts for people, which may be cut. A code or an id that is cut would be another one.
_MAY_BE_CUT = ("_name", "_description", "_reference", "_version")

#: Columns that must name a concept that is loaded, where only some vocabularies are.
_LINKS = {
    "concept_relationship": ("concept_id_1", "concept_id_2"),
    "concept_relationship_metadata": ("concept_id_1", "concept_id_2"),
    "concept_ancestor": ("ancestor_concept_id", "descendant_concept_id"),
    "concept_synonym": ("concept_id",),
    "concept_metadata": ("concept_id",),
    "drug_strength": ("drug_concept_id", "ingredient_concept_id"),
    "pack_content": ("pack_concept_id", "drug_concept_id"),
}


@dataclass
class Repair:
    """What was done to some lines of a file."""

    file: str
    #: such as "concept_name cut to 255 characters"
    what: str
    count: int = 0
    #: 1-based, of the first of them
    first_line: int = 0


@dataclass
class SelectedConcepts:
    """The vocabularies that are loaded, and the ids of their concepts, filled while CONCEPT.csv is read."""

    vocabularies: frozenset[str]
    _ids: list[np.ndarray] = field(default_factory=list)
    _sorted: np.ndarray | None = None

    def add(self, ids: np.ndarray) -> None:
        self._ids.append(ids)
        self._sorted = None

    def among(self, ids: np.ndarray) -> np.ndarray:
        """Which of these are loaded."""
        if self._sorted is None:
            self._sorted = np.sort(np.concatenate(self._ids)) if self._ids else np.empty(0, np.int64)
        if not len(self._sorted):
            return np.zeros(len(ids), dtype=bool)
        places = np.searchsorted(self._sorted, ids).clip(max=len(self._sorted) - 1)
        found: np.ndarray = self._sorted[places] == ids
        return found


class CleanedLines:
    """The lines of one file as PostgreSQL is given them, without the header."""

    def __init__(self, file: SourceFile, selected: SelectedConcepts | None = None) -> None:
        self._file = file
        self._selected = selected if selected and file.table in {"concept", "vocabulary", *_LINKS} else None
        self._tabs = len(file.columns) - 1
        lengths = {name: cdm.column_length(file.table, name) for name in file.columns if name.endswith(_MAY_BE_CUT)}
        self._limits = {
            number: length for number, name in enumerate(file.columns) if (length := lengths.get(name)) is not None
        }
        self._shortest = min(self._limits.values(), default=None)
        self.repairs: dict[str, Repair] = {}
        #: lines that `--only` left out
        self.left_out = 0
        self._sent = 0
        self._source_line = 2
        #: For each block the number of its first line as it was sent, and its lines' numbers in the file.
        self._starts: list[int] = []
        self._numbers: list[int | list[int]] = []

    def blocks(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Whole lines of the file, in blocks. `blocks`: its bytes after the header, cut anywhere."""
        rest = b""
        for block in blocks:
            end = block.rfind(b"\n") + 1
            if end == 0:
                rest += block
                continue
            whole, rest_now = rest + block[:end], block[end:]
            cleaned, pending = self._cleaned(whole)
            rest = pending + rest_now
            if cleaned:
                yield cleaned
        if rest:
            cleaned, pending = self._cleaned(rest if rest.endswith(b"\n") else rest + b"\n", is_last=True)
            assert not pending
            if cleaned:
                yield cleaned

    @property
    def sent(self) -> int:
        """Lines that were sent so far."""
        return self._sent

    def source_line(self, sent: int) -> int:
        """The line of the file that was sent as this one (both 1-based; the header is line 1 of the file)."""
        place = bisect_right(self._starts, sent) - 1
        if place < 0:
            return sent + 1
        numbers, within = self._numbers[place], sent - self._starts[place]
        if isinstance(numbers, int):
            return numbers + within
        return numbers[min(within, len(numbers) - 1)] if numbers else self._source_line

    def _cleaned(self, block: bytes, *, is_last: bool = False) -> tuple[bytes, bytes]:
        """The block as it is sent, and lines at its end that may go on in the next one."""
        pending = b""
        if self._file.has_carriage_returns:
            block = block.replace(b"\r\n", b"\n")
        count = block.count(b"\n")
        numbers: int | list[int] = self._source_line
        if self._needs_care(block, count):
            block, numbers, pending = self._cared_for(block, is_last=is_last)
            count -= pending.count(b"\n")
        self._source_line += count
        if self._selected is not None and block:
            block, numbers = self._without_others(block, numbers)
        sent = block.count(b"\n")
        self._starts.append(self._sent + 1)
        self._numbers.append(numbers)
        self._sent += sent
        return block, pending

    def _needs_care(self, block: bytes, lines: int) -> bool:
        if b"\r" in block or b"\b" in block or block.count(b"\t") != lines * self._tabs:
            return True
        if self._shortest is None:
            return False
        found = np.frombuffer(block, dtype=np.uint8)
        ends = np.flatnonzero((found == 9) | (found == 10))
        return bool(len(ends)) and bool(np.diff(ends, prepend=-1).max() - 1 > self._shortest)

    def _cared_for(self, block: bytes, *, is_last: bool) -> tuple[bytes, list[int], bytes]:
        lines = block.split(b"\n")[:-1]
        out: list[bytes] = []
        numbers: list[int] = []
        place = 0
        while place < len(lines):
            first, line = place, lines[place]
            place += 1
            if line in {b"", b"\r"}:
                continue
            tabs = line.count(b"\t")
            while tabs < self._tabs and place < len(lines) and tabs + lines[place].count(b"\t") <= self._tabs:
                tabs += lines[place].count(b"\t")
                line = line.rstrip(b"\r") + b" " + lines[place]
                self._note("line breaks inside a field replaced by a space", first)
                place += 1
            if tabs < self._tabs and place == len(lines) and not is_last and len(line) < _LONGEST_LINE:
                rest = b"\n".join(lines[first:]) + b"\n"
                self._forget("line breaks inside a field replaced by a space", place - first - 1)
                return _joined(out), numbers, rest
            out.append(self._repaired(line, first))
            numbers.append(self._source_line + first)
        return _joined(out), numbers, b""

    def _repaired(self, line: bytes, place: int) -> bytes:
        line = line.removesuffix(b"\r")
        if b"\r" in line:
            self._note("carriage returns inside a field replaced by a space", place)
            line = line.replace(b"\r", b" ")
        line = line.replace(b"\b", b" ")
        if self._shortest is None or len(line) <= self._shortest:
            return line
        fields = line.split(b"\t")
        for number, limit in self._limits.items():
            if number < len(fields) and len(fields[number]) > limit:
                try:
                    text = fields[number].decode()
                except UnicodeDecodeError:  # which the server refuses, with the line
                    continue
                if len(text) > limit:
                    fields[number] = text[:limit].encode()
                    self._note(f"{self._file.columns[number]} cut to {limit} characters", place)
        return b"\t".join(fields)

    def _note(self, what: str, place: int) -> None:
        repair = self.repairs.setdefault(what, Repair(self._file.path.name, what, first_line=self._source_line + place))
        repair.count += 1

    def _forget(self, what: str, count: int) -> None:
        """They are counted again when the rest of the line has come."""
        if count:
            self.repairs[what].count -= count
            if not self.repairs[what].count:
                del self.repairs[what]

    def _without_others(self, block: bytes, numbers: int | list[int]) -> tuple[bytes, int | list[int]]:
        """Without the lines of vocabularies that are left out."""
        assert self._selected is not None
        try:
            frame = pl.read_csv(
                block,
                separator="\t",
                quote_char=None,
                has_header=False,
                infer_schema=False,
                new_columns=list(self._file.columns),
            )
            keep = self._kept(frame)
        except (pl.exceptions.PolarsError, ValueError):  # the server says what is wrong, and in which line
            return block, numbers
        if keep.all():
            return block, numbers
        self.left_out += len(keep) - int(keep.sum())
        kept = frame.filter(pl.Series(keep))
        lines = range(numbers, numbers + len(keep)) if isinstance(numbers, int) else numbers
        remaining = np.asarray(lines)[keep].tolist()
        text = kept.write_csv(include_header=False, separator="\t", quote_style="never") if kept.height else ""
        return text.encode(), remaining

    def _kept(self, frame: pl.DataFrame) -> np.ndarray:
        assert self._selected is not None
        table = self._file.table
        if table in {"concept", "vocabulary"}:
            keep = frame["vocabulary_id"].is_in(list(self._selected.vocabularies)).fill_null(False).to_numpy()
            if table == "concept":
                self._selected.add(frame["concept_id"].cast(pl.Int64).filter(pl.Series(keep)).to_numpy())
            return keep
        keep = np.ones(frame.height, dtype=bool)
        for column in _LINKS[table]:
            keep &= self._selected.among(frame[column].cast(pl.Int64).fill_null(-1).to_numpy())
        return keep


def _joined(lines: list[bytes]) -> bytes:
    return b"\n".join(lines) + b"\n" if lines else b""
