"""docs/dead-letters.md: how dead letters are worked off (`dead_letters_head.md`), and an entry for each code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import wrap

from pipeline.quality.line_code_texts import ISSUES, REJECTIONS, CodeText

__all__ = ["dead_letters_page"]


def dead_letters_page() -> str:
    """The page as text."""
    head = Path(__file__).with_name("dead_letters_head.md").read_text(encoding="utf-8")
    return head + "\n" + "\n".join(_codes()).rstrip("\n") + "\n"


def _codes() -> Iterator[str]:
    yield from ["## Codes of dead letters", "", "In the order of the stages that give them.", ""]
    yield from _entries(REJECTIONS.items())
    yield from ["## Codes of issues", ""]
    yield "`etl.row_issue`: the resource is loaded, and something of it is other than its source says. No dead letter."
    yield ""
    yield from _entries(ISSUES.items())


def _entries(texts: Iterable[tuple[str, CodeText]]) -> Iterator[str]:
    for code, text in texts:
        stages = f" *Stage: {', '.join(text.stages)}.*" if text.stages else ""
        yield from [f"### {code}", ""]
        summary = text.summary[0].upper() + text.summary[1:]
        yield from _paragraph(f"**{summary}.**{stages} {text.meaning}")
        yield from _paragraph(f"*What to do:* {text.what_to_do}")


def _paragraph(text: str) -> list[str]:
    return [*wrap(text, 120, break_long_words=False, break_on_hyphens=False), ""]
