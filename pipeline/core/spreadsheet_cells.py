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
    """A cell that no spreadsheet takes for a formula: with an apostrophe before it, which `unguarded` takes off."""
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def unguarded(text: str) -> str:
    """What `guarded` was given."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text
