"""Current lines: the landed line that made what is known of each resource, which of them count, and reading them.

What vanished, left or was deleted has a state, but no line that is to be mapped. Nothing here maps anything.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO

from pipeline.core.errors import LandingError
from pipeline.fhir.lines import is_blank, is_erased
from pipeline.landing.reading import open_landed, read_at
from pipeline.landing.store import LandedExport, LandingStore
from pipeline.load.deletions import DELETED
from pipeline.publication.removed_persons import PERSON_REMOVED
from pipeline.publication.steps.vanished import LEFT_GROUP, VANISHED

__all__ = ["COUNTS", "MAPPABLE", "CurrentLines"]

_SILENT = ", ".join(f"'{reason}'" for reason in (DELETED, VANISHED, LEFT_GROUP))

#: SQL condition on `resource_state AS state`: its line says what the resource is now.
COUNTS = f"(state.outcome = 'loaded' OR (state.outcome = 'excluded' AND coalesce(state.reason, '') NOT IN ({_SILENT})))"

#: The same without those whose person is not there: they are mapped when the person comes (`removed_persons`).
MAPPABLE = f"({COUNTS} AND state.reason IS DISTINCT FROM '{PERSON_REMOVED}')"


@dataclass
class CurrentLines:
    """Reads lines of one site by the place that their states name. A context manager: it keeps one file open.

    Fast where lines are asked for in the order of exports, files and offsets.
    """

    landing: LandingStore
    site: str
    _stack: ExitStack = field(default_factory=ExitStack)
    _export: LandedExport | None = None
    _lost_export: int | None = None
    _file: tuple[int, int] | None = None
    _stream: BinaryIO | None = None

    def __enter__(self) -> CurrentLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, export_id: int, file_number: int, byte_offset: int, byte_length: int) -> bytes | None:
        """The line; None where landing does not hold it any more (or only that it was erased)."""
        try:
            stream = self._open(export_id, file_number)
            if stream is None:
                return None
            raw = read_at(stream, self.landing.folder(self.site, export_id), byte_offset, byte_length)
        except LandingError:
            return None
        return None if is_blank(raw) or is_erased(raw) else raw

    def _open(self, export_id: int, file_number: int) -> BinaryIO | None:
        if self._file == (export_id, file_number):
            return self._stream
        self._stack.close()
        self._file, self._stream = (export_id, file_number), None
        export = self._read_export(export_id)
        paths = {file.number: file.path for file in export.files} if export else {}
        if file_number in paths:
            self._stream = self._stack.enter_context(open_landed(paths[file_number]))
        return self._stream

    def _read_export(self, export_id: int) -> LandedExport | None:
        if self._export is None or self._export.export_id != export_id:
            try:
                # Not `open`: one damaged file of an export is no reason to pass over the others.
                is_lost = self._lost_export == export_id
                self._export = None if is_lost else self.landing.read_manifest(self.site, export_id)
            except LandingError:
                self._export, self._lost_export = None, export_id
        return self._export
