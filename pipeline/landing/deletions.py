"""The files of deleted resources that a manifest lists: Bundles of type transaction with DELETE entries.

Each entry counts as one line of the file's account, whatever the number of Bundles in it. One that cannot be read is
an entry without a resource: it is counted, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from pipeline.core.files import landing_errors
from pipeline.fhir.lines import ERASED, is_blank, without_mark
from pipeline.landing.reading import open_landed

__all__ = ["Deletion", "read_deletions"]


#: `Type/id`, also at the end of an absolute address; not a conditional delete, which names no resource.
_RESOURCE = re.compile(r"(?:.*/)?(?P<type>[A-Z][A-Za-z]{1,63})/(?P<id>[^/#?\s]+)")


@dataclass(frozen=True)
class Deletion:
    """The `number`-th entry (from 1) of a file, and the line in which it lies. No resource: it cannot be read."""

    number: int
    byte_offset: int
    byte_length: int
    resource_type: str | None
    resource_id: str | None
    #: It named an erased person (`landing/erased.py`).
    is_erased: bool = False


def read_deletions(path: Path) -> Iterator[Deletion]:
    """All entries of a file, in constant memory but for one Bundle. Raises LandingError."""
    number = offset = 0
    with landing_errors(path), open_landed(path) as stream:
        for line in stream:
            if not is_blank(without_mark(line)):
                for resource_type, resource_id, is_erased in _deleted(without_mark(line)):
                    number += 1
                    length = len(line.rstrip(b"\r\n"))
                    yield Deletion(number, offset, length, resource_type, resource_id, is_erased)
            offset += len(line)


_Deleted = tuple[str | None, str | None, bool]
_UNREADABLE: _Deleted = (None, None, False)
_ERASED: _Deleted = (None, None, True)


def _deleted(line: bytes) -> list[_Deleted]:
    try:
        bundle = orjson.loads(line)
    except orjson.JSONDecodeError:
        return [_UNREADABLE]
    entries = bundle.get("entry", []) if isinstance(bundle, dict) and bundle.get("resourceType") == "Bundle" else None
    if not isinstance(entries, list):
        return [_ERASED if bundle == ERASED else _UNREADABLE]
    return [_resource(entry) for entry in entries]


def _resource(entry: object) -> _Deleted:
    if entry == {ERASED: True}:
        return _ERASED
    request = entry.get("request") if isinstance(entry, dict) else None
    if not isinstance(request, dict) or request.get("method") != "DELETE":
        return _UNREADABLE
    url = request.get("url")
    match = _RESOURCE.fullmatch(url) if isinstance(url, str) else None
    return (match["type"], match["id"], False) if match else _UNREADABLE
