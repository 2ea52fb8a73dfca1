"""A JSON file with one resource or one Bundle → NDJSON lines by resource type (f2o-013).

A Bundle is taken apart where it holds resources as such: type document, collection or message. The others are
requests, answers or histories, which say something else about what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.errors import UsageError
from pipeline.landing.resource_types import TYPE_NAME

__all__ = ["JSON_SUFFIXES", "is_resource", "lines_by_type"]

JSON_SUFFIXES = (".json", ".json.gz")

_TYPES = ("collection", "document", "message")
_URN = "urn:uuid:"


def is_resource(content: bytes) -> bool:
    """Whether a file's content is one FHIR resource; a manifest or a settings file beside them is none."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return _type_of(value) is not None


def lines_by_type(content: bytes, name: str) -> dict[str, bytes]:
    """Resource type → NDJSON, in the order in which the types come. `name` is the file's, for messages.

    An entry without id takes that of its `urn:uuid:` fullUrl, by which the others refer to it. What an entry has
    beside its resource is left behind. Raises UsageError for a Bundle of another type.
    """
    value = orjson.loads(content)
    lines: dict[str, bytes] = {}
    for resource_type, resource in _resources(value, name):
        lines[resource_type] = lines.get(resource_type, b"") + orjson.dumps(resource) + b"\n"
    return lines


def _resources(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if value["resourceType"] != "Bundle":
        yield value["resourceType"], value
        return
    if value.get("type") not in _TYPES:
        raise UsageError(
            f"{name} is a Bundle whose type is none of {', '.join(_TYPES)}.",
            "Put its resources into a collection, or give them as NDJSON, one resource a line.",
        )
    entries = value.get("entry")
    for entry in entries if isinstance(entries, list) else ():
        resource: Any = entry.get("resource") if isinstance(entry, dict) else None
        resource_type = _type_of(resource)
        if resource_type is None:
            yield "Unknown", resource  # becomes a dead letter: nothing is passed over
            continue
        url = entry.get("fullUrl")
        if "id" not in resource and isinstance(url, str) and url.startswith(_URN):
            resource["id"] = url.removeprefix(_URN)
        if resource_type == "Bundle":
            yield from _resources(resource, name)
        else:
            yield resource_type, resource


def _type_of(value: Any) -> str | None:
    name = value.get("resourceType") if isinstance(value, dict) else None
    return name if isinstance(name, str) and TYPE_NAME.fullmatch(name) else None
