"""The version of publication: a hash of its code and SQL. When it changes, all persons are derived again at the next load.

A line's fingerprint knows nothing of it: no line is mapped again.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipeline.core.code_hash import code_hash
from pipeline.core.errors import LandingError
from pipeline.core.files import write_whole

__all__ = ["hash_of", "publication_version"]

_ROOT = Path(__file__).resolve().parents[2]
#: Below the home: the hash of all files of publication, and the version.
_KEPT = "publication_version"
_BLANK = re.compile(r"(?:\s|--[^\n]*|/\*.*?\*/)+", re.DOTALL)
_QUOTED_OR_BLANK = re.compile(rf"""('[^']*'|"[^"]*"|{_BLANK.pattern})""", re.DOTALL)


@cache
def publication_version(home: Path) -> str:
    """16 hexadecimal digits. Comments, docstrings and the layout of code change nothing.

    It takes half a second, and is kept in the home until a file of publication changes.
    """
    folder = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.sql")]):
        digest.update(f"\0{file.relative_to(folder)}\0".encode() + file.read_bytes())
    key, kept = digest.hexdigest(), home / _KEPT
    with suppress(OSError, ValueError):
        known_key, found = kept.read_text(encoding="ascii").split()
        if known_key == key:
            return found
    found = _compute(key)
    with suppress(LandingError):  # a home that cannot be written is the load's to report
        write_whole(kept, f"{key} {found}\n".encode())
    return found


@cache
def _compute(_key: str) -> str:
    """Once a process for all homes. `_key` distinguishes what was in the same files at different times."""
    return hash_of(Path(__file__).resolve().parent, _ROOT)


def hash_of(folder: Path, root: Path) -> str:
    """16 hexadecimal digits for the modules and the SQL files in a package's folder and below. `root`: the folder above
    the project's packages."""
    names = []
    for file in folder.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    digest = hashlib.sha256(code_hash(root, [], alone=names).encode())
    for file in sorted(folder.rglob("*.sql")):
        statement = _without_comments(file.read_text(encoding="utf-8"))
        digest.update(f"\0{file.relative_to(folder)}\0{statement}".encode())
    return digest.hexdigest()[:16]


def _without_comments(sql: str) -> str:
    """The statement with one blank for each comment and white space; quoted texts and names stay as they are."""
    return "".join(" " if _BLANK.fullmatch(part) else part for part in _QUOTED_OR_BLANK.split(sql) if part).strip()
