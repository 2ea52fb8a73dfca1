"""Texts of others in files that people open in a spreadsheet: no cell becomes a formula. How a file is laid out belongs to
whoever writes it."""

from __future__ import annotations

import re

__all__ = ["guarded", "unguarded"]

#: How a spreadsheet knows a formula, also with the wide letters of East Asian keyboards (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
#: What is a number for every spreadsheet, and no formula.
_NUMBER = re.compile(r"-[0-9]+(\.[0-9]+)?")


def guarded(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: with an apostrophe before it, which `unguarded` takes off. A text
    that looks guarded gets one more, so that it comes back as it was."""
    return f"'{text}" if _looks_like_formula(text) and not _NUMBER.fullmatch(text) else text


def unguarded(text: str) -> str:
    """What `guarded` was given."""
    return text[1:] if text.startswith("'") and _looks_like_formula(text) else text


def _looks_like_formula(text: str) -> bool:
    """Also behind apostrophes."""
    return text.lstrip("'").startswith(_FORMULA)
