"""What commands that read by reference show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.commands.terminal import MofNCompleteColumn, Terminal, progress

if TYPE_CHECKING:
    from pipeline.load.hydration import Hydration

__all__ = ["print_hydrations", "rest_progress"]


def print_hydrations(console: Terminal, results: Sequence[Hydration]) -> None:
    """Result of hydrations, a line each; nothing of one that had nothing to do."""
    for result in results:
        if result.asked or result.refused_types or result.unusable:
            console.print(f"Hydration: {result.summary()}")
        if result.error:
            console.print(f"Hydration ended early: {result.error}", style="yellow")


@contextmanager
def rest_progress(console: Terminal, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for single requests; the value is the callback (done, total), which any thread may call."""
    bar = progress(console, MofNCompleteColumn())
    task = bar.add_task(what, total=None, visible=False)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
