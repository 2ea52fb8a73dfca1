"""How a name that is not there is reported."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["unknown"]


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """`there is no column cod (did you mean code?)`"""
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"there is no {kind} {name}" + (f" (did you mean {close[0]}?)" if close else "")
