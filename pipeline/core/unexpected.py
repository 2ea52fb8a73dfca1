"""Exceptions that nobody expected → what a person is shown. Their text may quote patient data and is never shown.

A file system that refuses is reported as such. Everything else is a defect of ours: its stack and text go to a file of its
own in the home (mode 0600), which is named.
"""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.core.errors import Defect, EpicOmopError, StorageError
from pipeline.core.file_errors import remedy

__all__ = ["described", "refusal_of_files"]

_ROOT = Path(__file__).resolve().parents[2]


def described(error: BaseException, home: Path) -> EpicOmopError:
    """What to show of an exception that is none of ours. `home`: where the file about a defect is written."""
    if isinstance(error, MemoryError):
        return StorageError("There was not enough memory.", "Give more memory, or lower EPIC_OMOP_WORKERS.")
    refusal = refusal_of_files(error)
    if refusal is not None:
        return refusal
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    file = _write(error, home)
    where = f"{file} holds what it says; it may quote patient data: read it before you pass it on." if file else ""
    return Defect(f"This is a defect of epic-omop: {kind} at {_place(error)}.", f"{where} Please report it.".strip())


def refusal_of_files(error: BaseException) -> StorageError | None:
    """What to say of a file system that refuses; None for every other exception."""
    advice = remedy(error)
    if advice is None or not isinstance(error, OSError):
        return None
    what = f"{error.filename} cannot be used" if error.filename else "A file cannot be used"
    return StorageError(f"{what}: {os.strerror(error.errno or 0)}.", advice)


def _place(error: BaseException) -> str:
    """The innermost line of ours, as file:line in function."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)] or list(frames)
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else "an unknown place"


def _write(error: BaseException, home: Path) -> Path | None:
    file = home / "defects" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    with suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write("".join(traceback.format_exception(error)))
        return file
    return None
