"""Taking lines of erased persons out of landed files: other bytes of the same length in their place.

Lines keep their numbers and offsets, so that states, dead letters and accounts that point at other lines stay right.
A line that is erased as a whole is `"erased"` and blanks: it still counts as a line, and the transform excludes it.

A file that is stored once for several exports is rewritten for each of them, and stored once again at the end. It is written
anew beside the old one; the manifest gets the new SHA-256, and only then the file its name. A process
that dies in between leaves the old file, in which the next run finds the same lines again and comes to the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pipeline.core.errors import LandingError
from pipeline.core.files import landing_errors, put_in_place
from pipeline.fhir.lines import ERASED_MARK
from pipeline.landing.chunks import chunk_contents
from pipeline.landing.files import FileDigest, RunningDigest
from pipeline.landing.reading import stored_file
from pipeline.landing.store import LandedExport, LandedFile, LandingDraft
from pipeline.landing.storing import FindTwin, compressed, link_twin, plain, same_content

__all__ = ["LineEdit", "erased_line", "rewrite_draft", "rewrite_export", "rewrite_files"]

_MARKED_LINE = re.compile(rb'^"erased" *\r?$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LineEdit:
    """`length` bytes at `offset` of a file become `content` and blanks; None: the line is erased as a whole."""

    offset: int
    length: int
    content: bytes | None = None

    @property
    def bytes(self) -> bytes:
        return erased_line(self.length) if self.content is None else self.content.ljust(self.length)


def erased_line(length: int) -> bytes:
    """The bytes of an erased line; one too short for the mark (it contained no resource) becomes another that is none."""
    return (ERASED_MARK if length >= len(ERASED_MARK) else b"0").ljust(length)


def rewrite_export(export: LandedExport, edits: Mapping[Path, Sequence[LineEdit]], at: datetime) -> LandedExport:
    """Rewrite files of a finished export, its manifest and sidecars; the export as it is then. Raises LandingError."""
    if not edits:
        return export
    draft = LandingDraft(export.folder, export.site, export.export_id)
    written = {path: _Rewritten(path, edits[path]) for path in sorted(edits)}

    def changed(files: tuple[LandedFile, ...]) -> tuple[LandedFile, ...]:
        return tuple(written[file.path].describe(file) if file.path in written else file for file in files)

    rewritten = replace(
        export,
        files=changed(export.files),
        outcomes=changed(export.outcomes),
        deleted=changed(export.deleted),
        erased_at=at,
    )
    draft.write_manifest(rewritten)
    for file in (*rewritten.files, *rewritten.outcomes, *rewritten.deleted):
        if file.path in written:
            draft.write_sidecar(file)
            written[file.path].take_place(draft.find_twin)
    return rewritten


def rewrite_draft(draft: LandingDraft, files: Iterable[LandedFile], edits: Mapping[Path, Sequence[LineEdit]]) -> None:
    """Rewrite complete files of an unfinished export, each with its sidecar. Raises LandingError."""
    for file in files:
        if edits.get(file.path):
            written = _Rewritten(file.path, edits[file.path])
            draft.write_sidecar(written.describe(file))
            written.take_place()


def rewrite_files(edits: Mapping[Path, Sequence[LineEdit]]) -> None:
    """Rewrite files of which nothing is noted, such as the parts of a crawl. Raises LandingError."""
    for path, lines in edits.items():
        if lines:
            _Rewritten(path, lines).take_place()


class _Rewritten:
    """The new version of a file, durable under a temporary name."""

    def __init__(self, path: Path, edits: Sequence[LineEdit]) -> None:
        self._path = path
        self._stored = stored_file(path)
        self._digest, self._erased_lines = self._write(sorted(edits, key=lambda edit: edit.offset))

    def _write(self, edits: Sequence[LineEdit]) -> tuple[FileDigest, int]:
        digest = RunningDigest()
        marked = 0
        writing = plain if self._stored == self._path else compressed
        with writing(self._path) as (write, self._temporary):
            for data in _edited(self._path, edits):
                write(data)
                digest.add(data)
                marked += len(_MARKED_LINE.findall(data))
        return digest.result(), marked

    def describe(self, file: LandedFile) -> LandedFile:
        return replace(file, sha256=self._digest.sha256, erased_lines=self._erased_lines)

    def take_place(self, find_twin: FindTwin | None = None) -> None:
        """Replace the file; where another export's has become the same already, by another name of that one."""
        twin = find_twin(self._digest) if find_twin and self._stored != self._path else None
        with landing_errors(self._path):
            # A process that died may have noted what a file is to become, and left the file as it was.
            if twin and same_content(twin, self._digest) and link_twin(twin, self._path):
                self._temporary.unlink(missing_ok=True)
                return
            put_in_place(self._temporary, self._stored)


def _edited(path: Path, edits: Sequence[LineEdit]) -> Iterator[bytes]:
    """The file in pieces of whole lines, with the edits (by offset) made."""
    following = 0
    for chunk, content in chunk_contents(path):
        data = bytearray(content)
        while following < len(edits) and edits[following].offset < chunk.offset + chunk.length:
            edit = edits[following]
            start = edit.offset - chunk.offset
            data[start : start + edit.length] = edit.bytes
            following += 1
        if len(data) != chunk.length:
            raise LandingError(f"{path} cannot be rewritten: a line would change its length.")
        yield bytes(data)
