"""What the program `epic-omop` begins with: Ctrl-C is answered with a sentence from the first moment, not only when the
libraries, which take a second to load, are there."""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Load the commands and run one; `pipeline.cli` has the exit codes."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as in the background
    if ours:
        signal.signal(signal.SIGINT, _stop)
    from pipeline.cli import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _stop(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"Stopped. Nothing was begun.\n")
    os._exit(130)
