"""Which lines of a chunk are new: compared with what is loaded, first by their bytes, then by their content.

Lines in, indexes out; nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.fhir.ndjson import Lines
from pipeline.staging.known_lines import KnownLines
from pipeline.transform.content import Contents

__all__ = ["Compared", "compare_lines", "positions_of"]


@dataclass(frozen=True)
class Compared:
    """A chunk's lines and which of them are new."""

    #: of all lines (`positions_of`)
    positions: pl.DataFrame
    #: lines of each piece
    counts: tuple[int, ...]
    #: columns surrogate_id, index, file_number, line
    unchanged: pl.DataFrame
    #: those of the unchanged lines that have other bytes and the same content
    unchanged_by_content: pl.DataFrame
    #: every line by its index, empty where its bytes are known
    raws: list[bytes]
    #: indexes of the lines that are not unchanged
    new: list[int]


def compare_lines(
    known: KnownLines, contents: Contents, file_numbers: Sequence[int], pieces: list[Lines]
) -> Compared | None:
    """Compare the lines of pieces of files; None where they have none. Empties `pieces`: the bytes of a chunk are many."""
    counts = tuple(map(len, pieces))
    if not sum(counts):
        return None
    positions = positions_of(file_numbers, pieces)
    resources = known.resources_of_lines(positions)
    unchanged = positions.select(resources, "index", "file_number", "line").drop_nulls("surrogate_id")
    by_content = unchanged.clear()
    raws: list[bytes] = []
    new: list[int] = []
    if len(unchanged) < len(positions):
        raws, new = _new_lines(pieces, unchanged["index"])
        pieces.clear()  # the lines that are needed are copied
        found = contents.unchanged(new, [raws[index] for index in new])
        by_content = found.join(positions, on="index").select("surrogate_id", "index", "file_number", "line")
        unchanged = pl.concat([unchanged, by_content])
        same = set(by_content["index"])
        new = [index for index in new if index not in same]
    return Compared(positions, counts, unchanged, by_content, raws, new)


def positions_of(file_numbers: Sequence[int], pieces: Sequence[Lines]) -> pl.DataFrame:
    """Columns index, file_number, line, byte_offset, byte_length, raw_hash_high, raw_hash_low."""
    counts = [len(piece) for piece in pieces]
    hashes = np.concatenate([piece.hashes() for piece in pieces])
    return pl.DataFrame(
        {
            "index": np.arange(sum(counts), dtype=np.int32),
            "file_number": np.repeat(np.array(file_numbers, np.int32), counts),
            "line": np.concatenate([piece.numbers for piece in pieces]),
            "byte_offset": np.concatenate([piece.offsets for piece in pieces]),
            "byte_length": np.concatenate([piece.lengths for piece in pieces]),
            "raw_hash_high": np.ascontiguousarray(hashes[:, 0]),
            "raw_hash_low": np.ascontiguousarray(hashes[:, 1]),
        }
    )


def _new_lines(pieces: Sequence[Lines], unchanged: pl.Series) -> tuple[list[bytes], list[int]]:
    """Every line by its index, empty where it is unchanged; and the indexes of the others."""
    is_new = np.ones(sum(map(len, pieces)), np.bool_)
    is_new[unchanged.to_numpy()] = False
    raws: list[bytes] = []
    begin = 0
    for piece in pieces:
        here = is_new[begin : begin + len(piece)]
        begin += len(piece)
        if here.all():
            raws += piece.raws
            continue
        of_piece = [b""] * len(piece)
        places = np.flatnonzero(here)
        for place, raw in zip(places.tolist(), piece.raws_at(places), strict=True):
            of_piece[place] = raw
        raws += of_piece
    return raws, np.flatnonzero(is_new).tolist()
