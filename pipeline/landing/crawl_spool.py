"""What a crawl has found so far, patient by patient, until it is put together into the files of an export.

A crawl's patients come to their end in any order and may be interrupted at any moment. So each type of each patient is a
file of its own, whole or absent, named by the patient's place in the list (never by an id). `assemble` writes the export's
files in the order of the places: the same list gives the same files, however often the crawl was interrupted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.core.files import landing_errors, make_folder
from pipeline.core.resource_types import TYPE_NAME
from pipeline.fhir.operation_outcome import OPERATION_OUTCOME
from pipeline.landing.files import LandingWriter
from pipeline.landing.reading import open_landed
from pipeline.landing.store import Category, LandedFile, LandingDraft
from pipeline.landing.storing import StoredWriter

__all__ = ["CrawlSpool", "SpoolEntry"]


class SpoolEntry:
    """The lines of one search of one patient, by their own type. Lines are counted; `commit` makes them last."""

    def __init__(self, folder: Path, asked_type: str, stack: ExitStack) -> None:
        self._folder = folder
        self._asked = asked_type
        self._stack = stack
        self._writers: dict[str, LandingWriter] = {}
        self.lines = 0

    def add(self, resource_type: str, line: bytes) -> None:
        """One resource, without its line end. Raises LandingError."""
        if resource_type not in self._writers:
            path = self._folder / f"{self._asked}.{_check_type(resource_type)}.ndjson"
            self._writers[resource_type] = self._stack.enter_context(LandingWriter(path))
        self._writers[resource_type].write(line + b"\n")
        self.lines += resource_type != OPERATION_OUTCOME

    def commit(self) -> None:
        for writer in self._writers.values():
            writer.commit()


class CrawlSpool:
    """The folder of an unfinished crawl's parts, inside its draft."""

    def __init__(self, draft: LandingDraft) -> None:
        self._draft = draft
        self.folder = draft.folder / "patients"

    @contextmanager
    def entry(self, position: int, asked_type: str) -> Iterator[SpoolEntry]:
        """A new entry in place of what an earlier attempt left; without `commit` nothing remains."""
        folder = self.folder / f"{position:07d}"
        make_folder(folder)
        with landing_errors(folder):
            for left in folder.glob(f"{_check_type(asked_type)}.*"):
                left.unlink()
        with ExitStack() as stack:
            yield SpoolEntry(folder, asked_type, stack)

    def assemble(self, lines_per_file: int) -> tuple[tuple[LandedFile, ...], tuple[LandedFile, ...]]:
        """Write the export's files, at most so many lines each: (resources, outcomes). Repeating it gives the same."""
        parts = self._parts()
        landed: list[LandedFile] = []
        for resource_type in sorted(set(parts) - {OPERATION_OUTCOME}):
            landed += self._write(parts[resource_type], resource_type, "files", lines_per_file, len(landed))
        outcomes = parts.get(OPERATION_OUTCOME, [])
        return tuple(landed), tuple(self._write(outcomes, OPERATION_OUTCOME, "outcomes", lines_per_file, len(landed)))

    def discard(self) -> None:
        """The parts, once the export is landed."""
        with landing_errors(self.folder):
            if self.folder.exists():
                shutil.rmtree(self.folder)

    def _parts(self) -> dict[str, list[Path]]:
        """Type of the lines → files, in the order of the patients' places and the types asked for."""
        parts: dict[str, list[Path]] = {}
        if self.folder.exists():
            for path in sorted(self.folder.glob("*/*.ndjson")):
                parts.setdefault(path.name.split(".")[1], []).append(path)
        return parts

    def _write(
        self, parts: list[Path], resource_type: str, category: Category, most_lines: int, number: int
    ) -> Iterator[LandedFile]:
        lines = _lines(parts)
        line = next(lines, None)
        while line is not None:
            number += 1
            with self._draft.writer(number, resource_type, category) as writer:
                count = 0
                while line is not None and count < most_lines:
                    writer.write(line)
                    count += 1
                    line = next(lines, None)
                yield self._keep(writer, number, resource_type)

    def _keep(self, writer: StoredWriter, number: int, resource_type: str) -> LandedFile:
        return self._draft.keep(writer, number, resource_type)


def _lines(parts: list[Path]) -> Iterator[bytes]:
    for path in parts:
        with landing_errors(path), open_landed(path) as stream:
            yield from stream


def _check_type(resource_type: str) -> str:
    """A type becomes part of a file name: whatever is none never gets that far."""
    return resource_type if TYPE_NAME.fullmatch(resource_type) else "Unknown"
