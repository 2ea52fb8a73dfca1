"""What a file system refuses, and what helps: one table for every place that writes or reads files."""

from __future__ import annotations

import errno
import re

__all__ = ["error_number", "remedy"]

#: Beside these, the message names the file and says what the system says.
_REMEDIES = {
    errno.EROFS: "The file system is read-only: mount it for writing, or set EPIC_OMOP_HOME to a folder on another one.",
    errno.EACCES: "Give the user who runs this the rights to it, or run as the user who made it.",
    errno.EPERM: "Give the user who runs this the rights to it, or run as the user who made it.",
    errno.ENOSPC: "Make space there, then run the same command again.",
    errno.EDQUOT: "The quota is used up: raise it or make space, then run the same command again.",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), then run the same command again.",
    errno.EIO: "The device fails: see the system's log, then run the same command again.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n), then run the same command again.",
    errno.ENFILE: "Too many files are open on this machine: raise its limit, then run the same command again.",
    errno.ENOMEM: "There is no memory left: give more, or lower EPIC_OMOP_WORKERS.",
    errno.ESTALE: "The network file system lost it: mount it again, then run the same command again.",
    errno.ENOTDIR: "A file stands where a folder is needed: move it away, or name another folder.",
    errno.ENAMETOOLONG: "Use a folder with a shorter name.",
}

_POLARS_NUMBER = re.compile(r"\(os error (\d+)\)")


def error_number(error: BaseException) -> int | None:
    """The errno of an OSError, or the one in a text of polars, which reports a file system's refusal so."""
    if isinstance(error, OSError):
        return error.errno
    found = _POLARS_NUMBER.search(str(error))
    return int(found[1]) if found else None


def remedy(error: BaseException) -> str | None:
    """What to do about it, in one sentence; None for another error, or an unknown one."""
    return _REMEDIES.get(error_number(error) or 0)
