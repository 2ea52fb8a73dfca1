"""Landing a folder of NDJSON and JSON files, or one such file: what `ingest --from` brings.

NDJSON files are copied byte for byte (gzip is decompressed) and numbered in the order of their names. Bundles and
JSON files are unpacked (`landing/bundles.py`) into one file a resource type, numbered after those.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import orjson

from omop_schema.exports import ExportKind
from pipeline.core.errors import LandingError, UsageError
from pipeline.core.files import COPY_BYTES, landing_errors
from pipeline.core.resource_types import TYPE_NAME, type_in_file_name
from pipeline.fhir.gzip_stream import GZIP_MAGIC, DamagedGzipError, gunzip
from pipeline.fhir.lines import is_blank, without_mark
from pipeline.landing.bundles import UNKNOWN, unpack
from pipeline.landing.store import LandedExport, LandedFile, LandingDraft, LandingProgress, LandingStore
from pipeline.landing.storing import StoredWriter

__all__ = ["land_folder", "ndjson_files"]

_LINE_SUFFIXES = (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz")
_DOCUMENT_SUFFIXES = (".json", ".json.gz")
_SUFFIXES = (*_LINE_SUFFIXES, *_DOCUMENT_SUFFIXES)

#: A JSON document, or a Bundle in one line, is read as a whole: a larger one belongs into NDJSON of resources.
_MOST_DOCUMENT_BYTES = 512 * 1024 * 1024

_BUNDLE = re.compile(rb'\s*\{\s*"resourceType"\s*:\s*"Bundle"')

#: How much of a file is searched for a line that names its resourceType.
_SEARCH_BYTES = 4 * COPY_BYTES


def ndjson_files(source: Path) -> list[Path]:
    """The NDJSON and JSON files directly in a folder, by name; a file is itself. Raises UsageError for none."""
    if source.is_file() and source.name.endswith(_SUFFIXES):
        return [source]
    if not source.is_dir():
        raise UsageError(
            f"{source} is neither a folder nor an NDJSON or JSON file.",
            "Name a folder that holds <ResourceType>.ndjson files, or one file.",
        )
    with landing_errors(source):
        files = sorted(path for path in source.iterdir() if path.is_file() and path.name.endswith(_SUFFIXES))
    if not files:
        advice = f"Files must end with {', '.join(_SUFFIXES)}; folders inside it are not searched."
        raise UsageError(f"{source} holds no NDJSON file.", advice)
    return files


def land_folder(
    landing: LandingStore,
    site: str,
    export_id: int,
    source: Path,
    transaction_time: datetime,
    progress: Callable[[LandingProgress], None] | None = None,
) -> LandedExport:
    """Copy the files of `source` into a landed export, unpack Bundles and JSON files, and finish it.

    The type of a file comes from its name, else from its first readable line, else it is `Unknown`: each line is
    judged by its own resourceType later. Raises UsageError for a folder without NDJSON, LandingError for a gzip
    file that is damaged, for a document that is too large, or for a full disk.
    """
    draft = landing.begin(site, export_id)
    sources = ndjson_files(source)
    packed = [path for path in sources if _is_packed(path)]
    copied = [path for path in sources if path not in packed]
    landed: list[LandedFile] = []

    def report(path: Path, done: int, added: int) -> None:
        if progress:
            progress(LandingProgress(path.name, done, len(sources), added))

    for number, path in enumerate(copied, start=1):
        landed.append(_land_file(draft, number, path, partial(report, path, number - 1)))
        report(path, number, 0)
    with ExitStack() as stack:
        writers = _Writers(draft, stack, first=len(copied) + 1)
        for number, path in enumerate(packed, start=len(copied) + 1):
            _unpack_file(path, writers, partial(report, path, number - 1))
            report(path, number, 0)
        landed += writers.keep()
    return draft.finish(ExportKind.FOLDER, transaction_time, tuple(landed))


class _Writers:
    """One file for each resource type that Bundles hold, numbered as the types appear."""

    def __init__(self, draft: LandingDraft, stack: ExitStack, first: int) -> None:
        self._draft = draft
        self._stack = stack
        self._next = first
        self._by_type: dict[str, tuple[int, StoredWriter]] = {}

    def write(self, resource_type: str, line: bytes) -> None:
        if resource_type not in self._by_type:
            writer = self._stack.enter_context(self._draft.writer(self._next, resource_type))
            self._by_type[resource_type] = self._next, writer
            self._next += 1
        self._by_type[resource_type][1].write(line + b"\n")

    def keep(self) -> list[LandedFile]:
        return [self._draft.keep(writer, number, name) for name, (number, writer) in self._by_type.items()]


def _is_packed(path: Path) -> bool:
    """A JSON file, or NDJSON whose first line is a Bundle."""
    if path.name.endswith(_DOCUMENT_SUFFIXES):
        return True
    with suppress(DamagedGzipError):  # the copy reports it, with its advice
        beginning = without_mark(next(_content(path), b""))
        return _BUNDLE.match(beginning) is not None or _type_of(beginning.lstrip().split(b"\n", 1)[0]) == "Bundle"
    return False


def _unpack_file(path: Path, writers: _Writers, report: Callable[[int], None]) -> None:
    """Each document of a file: the file itself where it is one, else its lines. What is not valid JSON lands as it is."""
    for text in _documents(path, report):
        try:
            lines = unpack(text)
        except ValueError:
            lines = [(UNKNOWN, text.replace(b"\n", b" "))]
        for resource_type, line in lines:
            writers.write(resource_type, line)


def _documents(path: Path, report: Callable[[int], None]) -> Iterator[bytes]:
    if not path.name.endswith(_DOCUMENT_SUFFIXES):
        yield from _lines(path, report)
        return
    whole = _whole(path, report)
    first, _, rest = whole.lstrip().partition(b"\n")
    if _type_of(first) and rest.strip():  # NDJSON under the name of JSON
        yield from (line for line in whole.split(b"\n") if not is_blank(line))
    elif whole.strip():
        yield whole


def _whole(path: Path, report: Callable[[int], None]) -> bytes:
    content = bytearray()
    for chunk in _reported(path, report):
        content += chunk
        _refuse_too_large(path, len(content))
    return without_mark(bytes(content))


def _lines(path: Path, report: Callable[[int], None]) -> Iterator[bytes]:
    open_line = bytearray()
    start = True
    for piece in _reported(path, report):
        chunk = without_mark(piece) if start else piece
        start = False
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            whole_line = bytes(open_line) + line
            open_line.clear()
            if not is_blank(whole_line):
                yield whole_line
        open_line += rest
        _refuse_too_large(path, len(open_line))
    if not is_blank(bytes(open_line)):
        yield bytes(open_line)


def _reported(path: Path, report: Callable[[int], None]) -> Iterator[bytes]:
    try:
        for chunk in _content(path):
            report(len(chunk))
            yield chunk
    except DamagedGzipError as error:
        raise LandingError(f"{path} cannot be decompressed: {error}.", "Get the file again from its source.") from None


def _refuse_too_large(path: Path, size: int) -> None:
    if size > _MOST_DOCUMENT_BYTES:
        raise LandingError(
            f"{path} holds a JSON document of more than {_MOST_DOCUMENT_BYTES >> 20} MiB.",
            "Give Bundles of that size as NDJSON files of their resources.",
        )


def _land_file(draft: LandingDraft, number: int, path: Path, report: Callable[[int], None]) -> LandedFile:
    resource_type = type_in_file_name(path.name) or _type_in_content(path)
    done = draft.landed(number, resource_type)
    if done:
        return done
    with draft.writer(number, resource_type) as writer:
        _copy(path, writer, report)
        return draft.keep(writer, number, resource_type)


def _copy(path: Path, writer: StoredWriter, report: Callable[[int], None]) -> None:
    for chunk in _reported(path, report):
        writer.write(chunk)


def _content(path: Path) -> Iterator[bytes]:
    raw = _raw(path)
    first = next(raw, b"")
    whole = itertools.chain((first,), raw)
    # By content, not by name: decompressed files that kept `.gz`, and the other way round, are both seen.
    return gunzip(whole) if first.startswith(GZIP_MAGIC) else whole


def _raw(path: Path) -> Iterator[bytes]:
    with landing_errors(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(COPY_BYTES):
            yield chunk


def _type_in_content(path: Path) -> str:
    beginning = bytearray()
    with suppress(DamagedGzipError):  # the copy reports it, with its advice
        for chunk in _content(path):
            beginning += chunk
            if len(beginning) >= _SEARCH_BYTES:
                break
    return next((name for line in bytes(beginning).splitlines() if (name := _type_of(line))), UNKNOWN)


def _type_of(line: bytes) -> str | None:
    with suppress(orjson.JSONDecodeError):
        resource = orjson.loads(line)
        name = resource.get("resourceType") if isinstance(resource, dict) else None
        if isinstance(name, str) and TYPE_NAME.fullmatch(name):
            return name
    return None
