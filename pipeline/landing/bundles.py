"""Bundles → the resources in them, one line each, so that a Bundle and a file of resources land alike (f2o-013).

What is done with an entry, by Bundle.type:

- document, collection, message, searchset: its resource is a line. The guide names the first three; a search's answer
  holds resources as the server has them, and is taken as well.
- transaction, batch: a resource that is to be created or updated is a line, as in files of synthetic patients. One
  that belongs to another method (PATCH) is not a resource of a patient.
- history: versions are turned round, so that the newest is last and wins. Versions older than a deletion in the same
  Bundle are kept out of the load.
- responses: a resource that they bring is a line.

Nothing is dropped: whatever is not a resource to load (an entry without one, a deletion, a whole Bundle of a type that
FHIR does not define) becomes a line of type Bundle, which `mappings/Bundle.yaml` excludes with its reason or rejects.
So the lines that land are the entries. A `fullUrl` that other entries refer to becomes Type/id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import orjson
import xxhash

from pipeline.core.resource_types import TYPE_NAME

__all__ = ["UNKNOWN", "Unpacked", "unpack"]

#: Type of lines that are not resources: they are rejected as such.
UNKNOWN = "Unknown"

Unpacked = tuple[str, bytes]
"""Resource type (a possible name) and a line without its end."""

_UNPACKED_TYPES = frozenset(
    (
        "document",
        "collection",
        "message",
        "searchset",
        "transaction",
        "batch",
        "history",
        "batch-response",
        "transaction-response",
    )
)
_WRITES = (None, "POST", "PUT")


def unpack(text: bytes) -> list[Unpacked]:
    """The lines of one JSON document: a resource, an array of resources, or a Bundle with its entries.

    Numbers keep their digits. Raises ValueError for what is not valid JSON; the caller lands it as it is.
    """
    try:
        document = json.loads(text, parse_float=_as_written, parse_int=_as_written, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    items = document if isinstance(document, list) else [document]
    try:
        return [line for item in items for line in _lines(item)]
    except (orjson.JSONEncodeError, RecursionError) as error:
        raise ValueError("a text is not Unicode, or nested too deeply") from error


def _as_written(number: str) -> orjson.Fragment:
    return orjson.Fragment(number.encode())


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def _lines(item: Any) -> Iterator[Unpacked]:
    if not isinstance(item, dict) or item.get("resourceType") != "Bundle":
        yield _line(item)
        return
    entries = item.get("entry") or []
    if item.get("type") not in _UNPACKED_TYPES or not isinstance(entries, list) or not entries:
        yield _keep(item)
        return
    _resolve_references(entries)
    kind = item["type"]
    for number, entry in enumerate(_reversed(entries) if kind == "history" else entries, start=1):
        resource = entry.get("resource") if isinstance(entry, dict) else None
        if not isinstance(resource, dict) or not _is_content(kind, entry):
            alone = {"resourceType": "Bundle", "type": kind, "entry": [entry]}
            yield _keep({**alone, "id": f"{item['id']}.{number}"} if isinstance(item.get("id"), str) else alone)
        else:
            yield from _lines(resource)


def _line(item: Any) -> Unpacked:
    name = item.get("resourceType") if isinstance(item, dict) else None
    return name if isinstance(name, str) and TYPE_NAME.fullmatch(name) else UNKNOWN, orjson.dumps(item)


def _keep(bundle: dict[str, Any]) -> Unpacked:
    """A Bundle as a line of its own, with an id by content where it has none."""
    if not isinstance(bundle.get("id"), str):
        bundle = {**bundle, "id": f"content-{xxhash.xxh3_128_hexdigest(orjson.dumps(bundle))}"}
    return "Bundle", orjson.dumps(bundle)


def _is_content(kind: str, entry: dict[str, Any]) -> bool:
    if entry.get(_BEFORE_DELETION):
        return False
    request = entry.get("request")
    method = request.get("method") if isinstance(request, dict) else None
    return kind not in {"transaction", "batch", "history"} or method in _WRITES


#: Marks an entry of a history whose resource was deleted later; the mapping of Bundle reads it.
_BEFORE_DELETION = "beforeDeletion"


def _reversed(entries: list[Any]) -> list[Any]:
    """A history's entries, oldest first; it comes newest first."""
    deleted: set[str] = set()
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        request, resource = entry.get("request"), entry.get("resource")
        if isinstance(request, dict) and request.get("method") == "DELETE":
            deleted.add("/".join(str(request.get("url")).split("/_history/")[0].split("/")[-2:]))
        elif isinstance(resource, dict) and f"{resource.get('resourceType')}/{resource.get('id')}" in deleted:
            entry[_BEFORE_DELETION] = True
    return entries[::-1]


def _resolve_references(entries: list[Any]) -> None:
    """Give resources without id that of their `urn:uuid:`, and turn references to a fullUrl into Type/id."""
    targets: dict[str, str] = {}
    for entry in entries:
        resource, url = (entry.get("resource"), entry.get("fullUrl")) if isinstance(entry, dict) else (None, None)
        if not isinstance(resource, dict) or not isinstance(url, str):
            continue
        if not resource.get("id") and url.startswith(("urn:uuid:", "urn:oid:")):
            resource["id"] = url.split(":", 2)[2]
        target = f"{resource.get('resourceType')}/{resource.get('id')}"
        if isinstance(resource.get("id"), str) and not url.endswith(f"/{target}"):
            targets[url] = target
    if targets:
        for entry in entries:
            if isinstance(entry, dict):
                _replace(entry.get("resource"), targets)


def _replace(element: Any, targets: dict[str, str]) -> None:
    if isinstance(element, list):
        for item in element:
            _replace(item, targets)
    elif isinstance(element, dict):
        for name, value in element.items():
            if isinstance(value, str):
                if name == "reference" and value in targets:
                    element[name] = targets[value]
            else:
                _replace(value, targets)
