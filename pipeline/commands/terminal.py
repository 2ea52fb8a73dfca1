"""The one way in which text reaches a terminal. Only here are rich and `typer.echo` used for output.

What a warehouse holds (codes, displays, ids, what servers and files say) was written by others: it is shown, never
obeyed. No text is markup, and no character of it moves the cursor, colours, rings, links or turns the direction of what
follows: such a character is shown by a picture (␛) or its number (<U+202E>). Our own words get their weight from `words` and
`bold`. A test finds every other use of rich. How numbers are laid out in tables belongs in `tables.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

from pipeline.core.visible_text import needs_showing, shown, shown_lines

__all__ = [
    "BarColumn",
    "DownloadColumn",
    "MofNCompleteColumn",
    "Progress",
    "ProgressColumn",
    "Table",
    "TaskID",
    "Terminal",
    "Text",
    "TextColumn",
    "TimeElapsedColumn",
    "TimeRemainingColumn",
    "TransferSpeedColumn",
    "bold",
    "document",
    "echo",
    "lines",
    "progress",
    "styled",
    "survive_any_encoding",
    "words",
]


#: Columns of what has no width.
_UNBROKEN = 100_000


def lines(texts: Iterable[object]) -> Text:
    """Several lines in one cell or message; none of them can begin another."""
    return Text("\n".join(shown(text) for text in texts))


def words(*parts: str | Text) -> Text:
    """Parts of a sentence, some of them `bold` or `styled`, put together as they are."""
    return Text.assemble(*(part if isinstance(part, Text) else shown(part) for part in parts))


def bold(text: object) -> Text:
    return styled(text, "bold")


def styled(text: object, style: str) -> Text:
    """`style` is one of our own words for rich, never a value."""
    return Text(shown(text), style)


class Terminal(Console):
    """rich's console for values of others: in messages, tables, titles and bars a text is a text."""

    def __init__(self, *, stderr: bool = False, highlight: bool = True, **options: Any) -> None:
        super().__init__(stderr=stderr, highlight=highlight, markup=False, emoji=False, **options)
        if not self.is_terminal and "width" not in options:
            # A pipe, a file or a log has no width: nothing that is written there is broken or cut.
            self.width, self.soft_wrap = _UNBROKEN, True

    def render_str(self, text: str, **options: Any) -> Text:
        """What rich makes of every text that is not a renderable, wherever it stands."""
        return super().render_str(shown(text), **{**options, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The last look at everything that is drawn, also at a Text that was not made by this module."""
        for segment in super().render(renderable, options):
            safe = segment.control or not needs_showing(segment.text)
            yield segment if safe else Segment(shown_lines(segment.text), segment.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        return _Status(_plain(status), console=self, **options)


class _Status(Status):
    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(None if status is None else _plain(status), **options)


class TextColumn(ProgressColumn):
    """A text of a task of a progress bar; rich's own takes it for markup."""

    def __init__(self, template: str = "{task.description}") -> None:
        self._template = template
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(shown(self._template.format(task=task)))


def progress(console: Console, *columns: ProgressColumn, transient: bool = True) -> Progress:
    """A bar: what is done, how much of it, by `columns`, and since when."""
    return Progress(TextColumn(), BarColumn(), *columns, TimeElapsedColumn(), console=console, transient=transient)


def echo(text: object = "", *, err: bool = False) -> None:
    """One line without colours, for people and for programs that read it."""
    typer.echo(shown(text), err=err)


def document(text: str) -> None:
    """A text for programs (JSON, CSV), as it is; in a terminal with what that would obey shown."""
    stream = sys.stdout
    stream.write(shown_lines(text) if stream.isatty() else text)


def survive_any_encoding(*streams: Any) -> None:
    """A terminal that cannot write ✓ or ł gets an escape: no command ends half way because it lacks a letter."""
    for stream in streams:
        # Where a stream was put in the place of Python's own, that is its owner's business.
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")


def _plain(text: RenderableType) -> RenderableType:
    return Text(shown(text)) if isinstance(text, str) else text
