"""Landing a folder of NDJSON files: what `ingest --from` and a served download have in common ends here.

Files are copied byte for byte (gzip is decompressed) and numbered in the order of their names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import orjson

from pipeline.errors import LandingError, UsageError
from pipeline.landing.files import COPY_BYTES, LandingWriter, landing_errors
from pipeline.landing.gzip_stream import GZIP_MAGIC, DamagedGzipError, gunzip
from pipeline.landing.resource_types import TYPE_NAME, type_in_file_name
from pipeline.landing.store import LandedExport, LandedFile, LandingDraft, LandingProgress

__all__ = ["land_folder", "ndjson_files"]

_SUFFIXES = (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz")

#: Where neither the name nor the beginning of the content tells the type.
_UNKNOWN = "Unknown"

#: How much of a file is searched for a line that names its resourceType.
_SEARCH_BYTES = 4 * COPY_BYTES


def ndjson_files(source: Path) -> list[Path]:
    """The NDJSON files directly in a folder, by name. Raises UsageError when there are none."""
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder.", "Name a folder that holds <ResourceType>.ndjson files.")
    with landing_errors(source):
        files = sorted(path for path in source.iterdir() if path.is_file() and path.name.endswith(_SUFFIXES))
    if not files:
        advice = f"Files must end with {', '.join(_SUFFIXES)}; folders inside it are not searched."
        raise UsageError(f"{source} holds no NDJSON file.", advice)
    return files


def land_folder(
    draft: LandingDraft,
    source: Path,
    transaction_time: datetime,
    progress: Callable[[LandingProgress], None] | None = None,
) -> LandedExport:
    """Copy the NDJSON files of `source` into the draft and finish it.

    The type of a file comes from its name, else from its first readable line, else it is `Unknown`: each line is
    judged by its own resourceType later. Raises UsageError for a folder without NDJSON, LandingError for a gzip
    file that is damaged or for a full disk.
    """
    sources = ndjson_files(source)
    landed = []
    for number, path in enumerate(sources, start=1):

        def report(added: int, *, path: Path = path, done: int = number - 1) -> None:
            if progress:
                progress(LandingProgress(path.name, done, len(sources), added))

        landed.append(_land_file(draft, number, path, report))
        report(0, done=number)
    return draft.finish("folder", transaction_time, tuple(landed))


def _land_file(draft: LandingDraft, number: int, path: Path, report: Callable[[int], None]) -> LandedFile:
    resource_type = type_in_file_name(path.name) or _type_in_content(path)
    done = draft.landed(number, resource_type)
    if done:
        return done
    with draft.writer(number, resource_type) as writer:
        _copy(path, writer, report)
        return draft.keep(writer, number, resource_type)


def _copy(path: Path, writer: LandingWriter, report: Callable[[int], None]) -> None:
    try:
        for chunk in _content(path):
            writer.write(chunk)
            report(len(chunk))
    except DamagedGzipError as error:
        raise LandingError(f"{path} cannot be decompressed: {error}.", "Get the file again from its source.") from None


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
    with suppress(DamagedGzipError):  # the copy tells it, with its advice
        for chunk in _content(path):
            beginning += chunk
            if len(beginning) >= _SEARCH_BYTES:
                break
    for line in bytes(beginning).splitlines():
        with suppress(orjson.JSONDecodeError):
            resource = orjson.loads(line)
            name = resource.get("resourceType") if isinstance(resource, dict) else None
            if isinstance(name, str) and TYPE_NAME.fullmatch(name):
                return name
    return _UNKNOWN
