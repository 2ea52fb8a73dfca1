"""A reader of our output that went away (`epic-omop status | head -1`), distinguished from every other broken pipe."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["EXIT_CODE", "drop_output", "flush_output", "is_of_closed_output"]

#: What shells show of a program that SIGPIPE ended, as it ends most of them: 128 + 13.
EXIT_CODE = 141

_STANDARD = (1, 2)


def is_of_closed_output(error: BaseException) -> bool:
    """Whether the error comes of output that nobody reads any more. Libraries make a SystemExit(1) of it; a broken pipe to a
    worker or a server, of which they make the same, is something else."""
    if isinstance(error, SystemExit) and error.code != 1:
        return False
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, BrokenPipeError):
        seen = seen.__cause__ or seen.__context__
    return seen is not None and any(map(_is_closed, _STANDARD))


def flush_output() -> None:
    """Write what waits in Python's own buffers, so that it fails where that can be reported. Raises OSError."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def drop_output() -> None:
    """Python flushes once more when it ends, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in _STANDARD:
        with suppress(OSError):
            os.dup2(nowhere, number)


def _is_closed(number: int) -> bool:
    """Nobody reads the other end, or rich has noticed that already and put /dev/null in its place."""
    try:
        if os.path.samestat(os.fstat(number), Path(os.devnull).stat()):
            return True
    except OSError:
        return True
    watched = select.poll()
    watched.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in watched.poll(0))
