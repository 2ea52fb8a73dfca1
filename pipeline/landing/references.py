"""Which resources landed lines refer to, and which they are. Reads files; knows no warehouse.

References to what patients share are searched for in the bytes: every element counts, and no line is decoded (about
0.4 GB/s). Results, members and attachments are asked for by their elements, line by line; of the many Observations only the
lines that name members are decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import orjson

from pipeline.landing.chunks import chunk_contents, plan_chunks, read_lines
from pipeline.landing.store import LandedFile

__all__ = [
    "REPORT_TYPES",
    "attachments",
    "chunk_bytes",
    "landed_ids",
    "member_references",
    "members_of",
    "references_in",
    "resources_of",
    "result_references",
]

#: Types whose lines `result_references` and `attachments` are asked of.
REPORT_TYPES = ("DiagnosticReport", "DocumentReference")


def chunk_bytes(file: LandedFile) -> Iterator[bytes]:
    """A landed file in pieces of whole lines."""
    for _, content in chunk_contents(file.path):
        yield content


def references_in(data: bytes, resource_types: Collection[str]) -> set[str]:
    """The distinct literal references to these types in whole lines of NDJSON, as they are written.

    A quotation mark inside a text is escaped, so that nothing in a text looks like an element.
    """
    if not resource_types:
        return set()
    return {found.replace(b"\\/", b"/").decode() for found in set(_pattern(resource_types).findall(data))}


def _pattern(resource_types: Collection[str]) -> re.Pattern[bytes]:
    types = "|".join(sorted(resource_types)).encode()
    # an address before the type, up to its last slash; slashes may be escaped in JSON
    return re.compile(rb'"reference"\s*:\s*"((?:[^"]*/)?(?:' + types + rb')\\?/[^"\\]+(?:\\?/[^"\\]+)*)"')


def result_references(resource: dict[str, Any]) -> Iterator[str]:
    """The references of DiagnosticReport.result."""
    yield from _texts(resource.get("result"), lambda result: result.get("reference"))


_MEMBERS = b'"hasMember"'


def member_references(raws: Iterable[bytes]) -> Iterator[str]:
    """The references of Observation.hasMember in lines of NDJSON."""
    for resource in _decoded(raw for raw in raws if _MEMBERS in raw):
        if resource.get("resourceType") == "Observation":
            yield from _texts(resource.get("hasMember"), lambda member: member.get("reference"))


def members_of(file: LandedFile) -> Iterator[set[str]]:
    """The same of a landed file, a chunk at a time."""
    for content in chunk_bytes(file):
        if _MEMBERS in content:
            yield set(member_references(content.split(b"\n")))


def attachments(resource: dict[str, Any]) -> Iterator[str]:
    """The addresses of attachments that are not in the resource itself (DocumentReference, DiagnosticReport)."""
    yield from _texts(resource.get("content"), lambda content: _dict(content.get("attachment")).get("url"))
    yield from _texts(resource.get("presentedForm"), lambda form: form.get("url"))


def _texts(items: object, value: Callable[[dict[str, Any]], object]) -> Iterator[str]:
    for item in items if isinstance(items, list) else ():
        found = value(_dict(item))
        if isinstance(found, str):
            yield found


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def resources_of(file: LandedFile) -> Iterator[list[dict[str, Any]]]:
    """The resources of a file, a chunk at a time; lines that are none are passed over (the load reports them)."""
    for chunk in plan_chunks(file.path):
        yield list(_decoded(read_lines(file.path, chunk).raws))


def _decoded(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for raw in lines:
        try:
            resource = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        if isinstance(resource, dict):
            yield resource


def landed_ids(files: Iterable[LandedFile]) -> Iterator[tuple[str, str]]:
    """(type, id) of every readable resource in the files."""
    for file in files:
        for resources in resources_of(file):
            for resource in resources:
                resource_type, resource_id = resource.get("resourceType"), resource.get("id")
                if isinstance(resource_type, str) and isinstance(resource_id, str):
                    yield resource_type, resource_id
