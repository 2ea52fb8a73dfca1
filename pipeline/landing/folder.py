"""Landing a folder of NDJSON files: what `ingest --from` and a served download have in common ends here.

Files are copied byte for byte (gzip is decompressed) and numbered in the order of their names. JSON files with one
resource or one Bundle are taken apart into lines by type.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import orjson

from pipeline.errors import LandingError, UsageError
from pipeline.landing.bundles import JSON_SUFFIXES, is_resource, lines_by_type
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
    """The NDJSON files directly in a folder, and JSON files with a resource, by name. Raises UsageError for none."""
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder.", "Name a folder that holds <ResourceType>.ndjson files.")
    with landing_errors(source):
        files = sorted(path for path in source.iterdir() if path.is_file() and _is_source(path))
    if not files:
        advice = f"Files must end with {', '.join(_SUFFIXES)}; folders inside it are not searched."
        raise UsageError(f"{source} holds no NDJSON file.", advice)
    return files


def _is_source(path: Path) -> bool:
    return path.name.endswith(_SUFFIXES) or (path.name.endswith(JSON_SUFFIXES) and is_resource(_whole(path)))


def _whole(path: Path) -> bytes:
    try:
        return b"".join(_content(path))
    except DamagedGzipError as error:
        raise LandingError(f"{path} cannot be decompressed: {error}.", "Get the file again from its source.") from None


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
    landed: list[LandedFile] = []
    for position, path in enumerate(sources, start=1):

        def report(added: int, *, path: Path = path, done: int = position - 1) -> None:
            if progress:
                progress(LandingProgress(path.name, done, len(sources), added))

        if path.name.endswith(JSON_SUFFIXES):
            for resource_type, lines in lines_by_type(_whole(path), path.name).items():
                landed.append(_land_lines(draft, len(landed) + 1, resource_type, lines))
        else:
            landed.append(_land_file(draft, len(landed) + 1, path, report))
        report(0, done=position)
    return draft.finish("folder", transaction_time, tuple(landed))


def _land_file(draft: LandingDraft, number: int, path: Path, report: Callable[[int], None]) -> LandedFile:
    resource_type = type_in_file_name(path.name) or _type_in_content(path)
    done = draft.landed(number, resource_type)
    if done:
        return done
    with draft.writer(number, resource_type) as writer:
        _copy(path, writer, report)
        return draft.keep(writer, number, resource_type)


def _land_lines(draft: LandingDraft, number: int, resource_type: str, lines: bytes) -> LandedFile:
    done = draft.landed(number, resource_type)
    if done:
        return done
    with draft.writer(number, resource_type) as writer:
        writer.write(lines)
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
