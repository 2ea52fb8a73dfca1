"""What commands that export show while they wait, and ask."""

from __future__ import annotations

import sys
import threading
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING

import typer
from rich import filesize

from pipeline.commands.terminal import BarColumn, Progress, TaskID, Terminal, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from pipeline.extract.bulk import ExportEvent

__all__ = ["ExportProgress", "is_interactive"]


def is_interactive(console: Terminal) -> bool:
    """Whether somebody is there who can be asked."""
    return console.is_terminal and sys.stdin.isatty()


class ExportProgress:
    """A line a group: its state while Epic works, a bar of files while they come. For `with`."""

    def __init__(self, console: Terminal) -> None:
        self._progress = Progress(
            TextColumn(),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> ExportProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def keep_future_time(self, stated: datetime, now: datetime) -> bool:
        """Asks whether a transactionTime that is ahead of this machine's clock counts all the same."""
        self._progress.stop()
        try:
            return typer.confirm(
                f"The site says that this export is of {stated:%Y-%m-%d %H:%M} UTC; here it is {now:%Y-%m-%d %H:%M} UTC."
                " Until then, nothing that comes later would count. Keep the site's time, instead of that of the kick-off?",
                default=False,
            )
        finally:
            self._progress.start()

    def show(self, event: ExportEvent) -> None:
        """The callback for `export_groups`; called from several threads."""
        with self._lock:
            if event.group not in self._tasks:
                self._tasks[event.group] = self._progress.add_task(f"group {event.group}", total=None, detail="")
            task = self._tasks[event.group]
            if event.landing is None:
                self._progress.update(task, detail=f"{event.state} {event.detail}".strip())
                return
            received = self._bytes.get(event.group, 0) + event.landing.bytes_added
            self._bytes[event.group] = received
            done, total = event.landing.files_done, event.landing.files_total
            detail = f"{done} of {total} files, {filesize.decimal(received)}"
            self._progress.update(task, completed=done, total=total, detail=detail)
