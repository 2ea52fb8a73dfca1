"""A bound for everything that a receiver may take, whatever it does: libraries bound each step of theirs, and a server that
sends one byte every few seconds makes many steps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from pipeline.core.errors import RemoteUnavailable

__all__ = ["Closing", "within"]

_T = TypeVar("_T")


class Closing:
    """What is to be closed when the time is over; set by the function as soon as it has it."""

    def __init__(self) -> None:
        self._close: Callable[[], object] | None = None

    def by(self, close: Callable[[], object]) -> None:
        self._close = close

    def close(self) -> None:
        if self._close is not None:
            with suppress(Exception):  # whatever it is: the connection is given up anyhow
                self._close()


def within(seconds: float, action: str, function: Callable[[Closing], _T]) -> _T:
    """Run the function in a thread of its own. Raises RemoteUnavailable when it takes longer, and what it raises."""
    closing = Closing()
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function(closing))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="alert delivery")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        closing.close()
        raise RemoteUnavailable(
            f"{action} took longer than {seconds:g} s and was given up.",
            "The receiver hangs or is overloaded; whether it took the message is not known, so it is sent again.",
        )
    if errors:
        raise errors[0]
    return results[0]
