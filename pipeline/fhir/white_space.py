"""White space is not content: where JSON has strings with white space at an edge, or with nothing else, and without it.

FHIR's strings hold more than white space, and its codes neither begin nor end with it. Lines that keep to that, nearly all,
are only searched, all of a chunk at once; the others are read without it, so that no view, rule or look-up meets any.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
import polars as pl

__all__ = ["lines_with_odd_edges", "lines_with_white_space", "without_white_space"]

#: Unicode's white space, separators of control, zero-width space and byte order mark.
_SPACES = (
    "".join(
        map(chr, (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200C), 0x2028, 0x2029, 0x202F))
    )
    + "\u205f\u3000\ufeff"
)
#: A string's edge in JSON, where it is not a plain space: an odd space, or an escape that may stand for one.
_SPACE = r"(?:[\s\x{1c}-\x{1f}\x{200b}\x{feff}]|\\(?:[nrtbf]|u[0-9a-fA-F]{4}))"
_ODD_EDGE = rf'{_SPACE}"|[^\\]"{_SPACE}'
#: In a text of a narrative a quote is escaped: what follows it is within the string.
_BEGINNING = r'[^\\]" '
_BEGINNING_OF_BYTES = re.compile(_BEGINNING.encode())


def lines_with_white_space(texts: pl.Series) -> list[int]:
    """Positions of the lines (JSON) that may have a string with white space at an edge, or an empty one."""
    begins = texts.str.contains('" ', literal=True)
    if begins.any():
        begins &= texts.str.contains(_BEGINNING)
    found = begins | texts.str.contains(' "', literal=True) | texts.str.contains('""', literal=True)
    return sorted({*found.fill_null(False).arg_true(), *lines_with_odd_edges(texts)})


def lines_with_odd_edges(texts: pl.Series) -> pl.Series:
    """Positions of the lines that may have a string with white space at an edge that is not a plain space."""
    # Escapes, and other letters than ASCII's: few lines have any, and a search for what may be a space among them is slow.
    others = texts.str.contains("\\", literal=True) | (texts.str.len_bytes() != texts.str.len_chars())
    positions = others.fill_null(False).arg_true()
    return positions.filter(texts.gather(positions).str.contains(_ODD_EDGE).fill_null(False))


def without_white_space(resource: Any) -> Any:
    """The resource with its strings trimmed, and without what then is empty; itself where nothing is.

    Raises RecursionError where it is nested too deeply.
    """
    if _is_trimmed(resource):
        return resource
    trimmed = _trimmed(resource)
    return {} if trimmed is None else trimmed


def _is_trimmed(resource: Any) -> bool:
    """True where nothing is to be trimmed: a server may write spaces between the elements. False where that is open."""
    try:
        compact = orjson.dumps(resource, default=str)
    except orjson.JSONEncodeError:  # nested more deeply than orjson writes
        return False
    return (
        compact.isascii()
        and b"\\" not in compact
        and b' "' not in compact
        and b'""' not in compact
        and not _BEGINNING_OF_BYTES.search(compact)
    )


def _trimmed(value: Any) -> Any:
    """The value without white space at edges; None for what holds nothing else."""
    if value.__class__ is str:
        return value.strip(_SPACES) or None
    if value.__class__ is dict:
        found = {name: kept for name, item in value.items() if (kept := _trimmed(item)) is not None}
        return found if found or not value else None
    if value.__class__ is list:
        # Of texts null keeps the place: `_given` may say something about it. An object that contained nothing else is gone.
        items = [kept for item in value if (kept := _trimmed(item)) is not None or item.__class__ is not dict]
        return items if not value or any(item is not None for item in items) else None
    return value
