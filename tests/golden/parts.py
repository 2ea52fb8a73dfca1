"""Into which parts the golden cases are divided, so that several workers load them.

A part is loaded by one worker. Cases of the same settings are one export, and stay together.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["USUAL", "divided"]

#: The part of the largest group: cases of sites without settings of their own.
USUAL = "usual"
_OTHERS = ("settings_1", "settings_2", "settings_3")


def divided(groups: Mapping[str, str]) -> dict[str, str]:
    """Case → part. `groups`: case → its settings as text."""
    settings = list(dict.fromkeys(groups.values()))
    sizes = {text: sum(group == text for group in groups.values()) for text in settings}
    largest = max(settings, key=lambda text: sizes[text])
    others = [text for text in settings if text != largest]
    part_of = {text: _OTHERS[number % len(_OTHERS)] for number, text in enumerate(others)} | {largest: USUAL}
    return {case: part_of[text] for case, text in groups.items()}
