"""Texts of others as they can be shown: in a terminal, in a log. What draws them is in `pipeline/commands/terminal.py`."""

from __future__ import annotations

import re

__all__ = ["needs_showing", "shown", "shown_lines"]

#: C0, DEL and C1; marks, embeddings and isolates of direction; separators of lines; halves of surrogate pairs, which no
#: encoding takes; characters without width that hide in names (tags, joiners of words, the byte order mark).
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def shown(text: object) -> str:
    """The text on one line; each character that a terminal would obey is replaced by a picture (␛) or its number
    (<U+202E>)."""
    return _UNSAFE.sub(_picture, str(text))


def shown_lines(text: str) -> str:
    """The same for a text whose line ends are its own."""
    return "\n".join(shown(line) for line in text.split("\n"))


def needs_showing(text: str) -> bool:
    """Whether `shown` would change it."""
    return _UNSAFE.search(text) is not None


def _picture(match: re.Match[str]) -> str:
    number = ord(match[0])
    if number < 0x20:
        return chr(0x2400 + number)
    return "␡" if number == 0x7F else f"<U+{number:04X}>"
