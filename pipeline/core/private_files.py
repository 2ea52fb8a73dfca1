"""Modes of files: what this program makes is its user's alone, and so is what it finds open in its home.

Every process begins with `work_privately`, so that no library (Dagster's SQLite, locks, logs) leaves a file open to others.
What others are meant to read (a public key, a lakehouse for a group) says so where it is written.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["make_private", "work_privately"]

_OTHERS = 0o077
#: The embedded server's folder is PostgreSQL's own, and under root another account reads parts of it.
_NOT_OURS = frozenset({"postgres"})


def work_privately(home: Path | None = None) -> None:
    """From now on files are made 0600 and folders 0700, here and in child processes. `home`: also closed if it is there."""
    os.umask(_OTHERS)
    if home is not None:
        make_private(home)


def make_private(home: Path) -> None:
    """Close the home, and what of it is open to others, whoever made it with whatever umask.

    Looks at the home and the entries in it; what is below an open folder is walked, once. Links are not followed, what
    belongs to others stays, and a folder for everyone (/tmp) is not a home. Owner's bits are left as they are.
    """
    try:
        found = home.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_mode & stat.S_ISVTX or found.st_uid != os.geteuid():
            return
        was_open = _close(home)
        for entry in os.scandir(home):
            path = Path(entry.path)
            if entry.name not in _NOT_OURS and not entry.is_symlink() and (_close(path) or was_open) and entry.is_dir():
                _close_below(path)
    except OSError:
        return  # the command itself says what is wrong with its home


def _close_below(folder: Path) -> None:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):  # gone meanwhile, or another's
                _close(Path(place, name))


def _close(path: Path) -> bool:
    """Whether it was open to others."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or not found.st_mode & _OTHERS or found.st_uid != os.geteuid():
        return False
    path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    return True
