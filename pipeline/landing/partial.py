"""Files that come in pieces: what is there outlives a cut connection and a killed process, and is gone on with.

    files/Observation.00002.ndjson.part        the bytes so far
    files/Observation.00002.ndjson.part.json   how many of them are sure, their SHA-256, and of which remote file

What comes is kept as it is, and compressed when it is complete (`landing/storing.py`). The note is not synced to the
disk: it vouches for bytes by their hash, so after a power failure it fits or is ignored.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from pipeline.core.errors import PermanentError
from pipeline.core.files import COPY_BYTES, landing_errors, write_whole
from pipeline.landing.files import FileDigest, RunningDigest
from pipeline.landing.storing import FindTwin, store_plain

__all__ = ["PartialFile"]

#: A killed process loses at most so many bytes of a file.
_NOTE_EVERY_BYTES = 1 << 20


class PartialFile:
    """One file on its way into the store. A context manager; without `commit` the next one of that path continues.

    `source` names the remote file: the part of another one is not taken up. What is there is thrown away when the
    block ends with a PermanentError. Memory does not grow with the file. Raises LandingError, also for a full disk.
    """

    def __init__(self, path: Path, source: str, find_twin: FindTwin) -> None:
        self.path = path
        self._find_twin = find_twin
        self.source = source
        #: What the server's answer says of the version that the bytes belong to (ETag or Last-Modified), for If-Range.
        self.validator: str | None = None
        self._part = path.with_name(f"{path.name}.part")
        self._note = path.with_name(f"{path.name}.part.json")
        self._digest = RunningDigest()
        self._noted = 0
        self._committed = False

    def __enter__(self) -> PartialFile:
        with landing_errors(self.path):
            descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o600)
            self._file = open(descriptor, "r+b", buffering=COPY_BYTES)  # noqa: PTH123 - a Path cannot open a descriptor
            self._take_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        keep = not self._committed and self._digest.size > 0 and not isinstance(error, PermanentError)
        with suppress(OSError):  # a full disk refuses this as well: then the last note stands
            if keep:
                self._write_note()
        with suppress(OSError):
            self._file.close()
        if not keep and not self._committed:
            self._part.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)

    def _take_up(self) -> None:
        """Read what an earlier process left as far as its note vouches for it, else begin anew."""
        noted = self._read_note()
        size = noted.get("bytes") if noted.get("source") == self.source else None
        if not isinstance(size, int) or not 0 < size <= os.fstat(self._file.fileno()).st_size:
            self._begin()
            return
        left = size
        while left and (chunk := self._file.read(min(COPY_BYTES, left))):
            self._digest.add(chunk)
            left -= len(chunk)
        if left or self._digest.result().sha256 != noted.get("sha256"):
            self._begin()
            return
        self._file.truncate(size)
        self._file.seek(size)
        self._noted = size
        validator = noted.get("validator")
        self.validator = validator if isinstance(validator, str) else None

    def _read_note(self) -> dict[str, Any]:
        try:
            note = orjson.loads(self._note.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return {}
        return note if isinstance(note, dict) else {}

    def _begin(self) -> None:
        self._note.unlink(missing_ok=True)
        self._file.seek(0)
        self._file.truncate()
        self._digest = RunningDigest()
        self._noted = 0
        self.validator = None

    def write(self, chunk: bytes) -> None:
        with landing_errors(self.path):
            self._file.write(chunk)
            self._digest.add(chunk)
            if self._digest.size - self._noted >= _NOTE_EVERY_BYTES:
                self._write_note()

    def _write_note(self) -> None:
        self._file.flush()
        digest = self._digest.result()
        content = {"source": self.source, "validator": self.validator, "bytes": digest.bytes, "sha256": digest.sha256}
        write_whole(self._note, orjson.dumps(content), is_durable=False)  # without it the file is fetched again
        self._noted = digest.bytes

    def restart(self, validator: str | None = None) -> None:
        """Forget what came; the bytes of a version with this validator follow."""
        with landing_errors(self.path):
            self._begin()
        self.validator = validator

    @property
    def bytes_written(self) -> int:
        return self._digest.size

    def tail(self, length: int) -> bytes:
        """The last bytes so far, at most `length`."""
        length = min(length, self._digest.size)
        with landing_errors(self.path):
            self._file.flush()
            return os.pread(self._file.fileno(), length, self._digest.size - length)

    def head(self, length: int) -> bytes:
        """The first bytes so far, at most `length`."""
        with landing_errors(self.path):
            self._file.flush()
            return os.pread(self._file.fileno(), min(length, self._digest.size), 0)

    def digest(self) -> FileDigest:
        """What is there so far."""
        return self._digest.result()

    def commit(self) -> FileDigest:
        """Give the file its final name; from here on it survives a crash."""
        digest = self._digest.result()
        with landing_errors(self.path):
            self._file.flush()
            store_plain(self._part, self.path, digest, self._find_twin)
            self._committed = True
            self._note.unlink(missing_ok=True)
            self._part.unlink(missing_ok=True)
        return digest
