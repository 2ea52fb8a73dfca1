"""How a full disk of PostgreSQL is recognised, and what is reported of it."""

from __future__ import annotations

import errno
import os

__all__ = ["MAKE_SPACE", "tells_full_disk"]

#: What systems say of a disk, a quota or a file that takes no more. PostgreSQL has a class of errors for the first
#: alone (53100), and reports the others as internal errors.
_TEXTS = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))

MAKE_SPACE = (
    "Make space where the database keeps its data (`epic-omop db status` says where an embedded one does), then run the"
    " same command again: it continues with what is landed."
)


def tells_full_disk(text: str) -> bool:
    """Whether a message of PostgreSQL's, in English, is of a disk that takes no more."""
    return any(known in text for known in _TEXTS)
