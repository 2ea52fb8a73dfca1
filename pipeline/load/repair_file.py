"""The file in which a person repairs lines of dead letters: how it is written, and how it is read back.

    # letter 17: date_invalid at Condition.onset, the text is not a valid FHIR date
    {"resourceType": "Condition", …}

Above each line stands its letter; a resource may go over several lines. The file holds patient data: it is made 0600, and
one that others can read is refused. What a repair does is `pipeline.load.repair`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import StorageError, UsageError
from pipeline.core.file_errors import remedy
from pipeline.fhir.lines import BYTE_ORDER_MARK

__all__ = ["RepairedLine", "read_repairs", "refuse_existing", "write_repairs"]

_HEAD = re.compile(rb"#\s*letter\s+(\d{1,18})\b", re.IGNORECASE)
_INTRODUCTION = (
    b"# Lines of dead letters: PATIENT DATA. Repair them here, then run `epic-omop dead-letters repair` with this file.\n"
    b"# A letter whose line stays as it is is not sent. Lines that begin with # are for you. Delete the file afterwards.\n"
)
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class RepairedLine:
    """A line as a person left it. `letter`: None where none stands above it. `place`: where it begins in the file, from 1."""

    letter: int | None
    raw: bytes
    place: int


def refuse_existing(file: Path) -> None:
    """Raises UsageError where the file is there, before anything is looked at."""
    if file.exists() or file.is_symlink():
        raise _existing(file)


def _existing(file: Path) -> UsageError:
    return UsageError(
        f"{file} is there already.", "Leave --id and --code out to send what it holds, or name another file."
    )


def write_repairs(file: Path, letters: Sequence[tuple[int, str, bytes]]) -> None:
    """A new file with (letter, what is wrong with it, its line) of each, 0600 from its first byte.

    Raises UsageError where the file is there: it may be a person's work; StorageError.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            os.fchmod(descriptor, 0o600)
            out.write(_INTRODUCTION)
            for letter, problem, raw in letters:
                out.write(b"\n# letter %d: %s\n" % (letter, " ".join(problem.split()).encode()))
                out.write(raw.rstrip(b"\r\n") + b"\n")
    except FileExistsError as error:
        raise _existing(file) from error
    except OSError as error:
        raise _refused(file, error) from error


def read_repairs(file: Path) -> list[RepairedLine]:
    """The lines of a file, in its order; without `# letter` above them each line is one by itself.

    Raises UsageError for a file that others can read, that is too large, or holds no line; StorageError.
    """
    return [line for line in _lines(_content(file)) if line.raw]


def _content(file: Path) -> bytes:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # before it is opened: a pipe would wait for its writer
            raise UsageError(f"{file} is not a file.", "Name a file that `dead-letters repair FILE --id ID` wrote.")
        with file.open("rb") as source:
            found = os.fstat(source.fileno())
            if found.st_mode & 0o077:
                raise UsageError(
                    f"{file} can be read by others, and holds patient data.", f"Run `chmod 600 {file}`, then again."
                )
            if found.st_size > _MOST_BYTES:
                raise UsageError(f"{file} has more than 1 GiB.", "Repair fewer letters at once.")
            return source.read()
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no file {file}.", "`epic-omop dead-letters repair FILE --id ID` writes one to be edited."
        ) from error
    except OSError as error:
        raise _refused(file, error) from error


def _refused(file: Path, error: OSError) -> StorageError:
    reason = error.strerror or type(error).__name__
    return StorageError(f"{file} cannot be read or written: {reason}.", remedy(error) or "Name another file.")


def _lines(content: bytes) -> Iterator[RepairedLine]:
    letter, place, parts = None, 0, list[bytes]()
    for number, line in enumerate(content.removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        text = line.strip(b" \t\r")
        if text.startswith(b"#"):
            if head := _HEAD.match(text):
                yield RepairedLine(letter, b" ".join(parts), place)
                letter, place, parts = int(head[1]), number, []
            continue
        if not text:
            continue
        if letter is None:
            yield RepairedLine(None, text, number)
        else:
            place = place if parts else number
            parts.append(text)  # JSON has no line breaks within texts: between its tokens a space says the same
    yield RepairedLine(letter, b" ".join(parts), place)
