"""What a simulated Epic's reads and searches look in: the groups' resources by id, patient and category. Knows no HTTP.

Built from the same lines as the bulk export, so that both give the same bytes. A line that is not valid JSON, or that has no
id, cannot be served by REST at all.
"""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import orjson

from pipeline.sandbox.config import SandboxConfig
from pipeline.sandbox.exports import ExportDesk

__all__ = ["Found", "RestIndex", "RestIndexes"]

#: Epic searches by the kind of its records, not by the element: a resource without category is found with its kind.
_KINDS = {"Observation": "survey", "Condition": "encounter-diagnosis", "DocumentReference": "clinical-note"}
_CATEGORY_OF_PLANS = "38717003"


@dataclass(frozen=True)
class Found:
    """One resource: its line as the bulk export has it, what searches compare, and when it last changed."""

    id: str
    line: bytes
    categories: frozenset[str]
    codes: frozenset[str]
    updated: datetime


@dataclass
class RestIndex:
    """All resources of one day. The last line of an id wins, as in an export."""

    by_id: dict[tuple[str, str], Found] = field(default_factory=dict)
    #: (type, patient's id) → ids of resources, in the order of their lines
    of_patient: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)

    def search(self, resource_type: str, patient: str) -> Iterator[Found]:
        for resource_id in self.of_patient.get((resource_type, patient), ()):
            yield self.by_id[resource_type, resource_id]


class RestIndexes:
    """The index of the sandbox's current day, made when it is first asked for."""

    def __init__(self, config: SandboxConfig, desk: ExportDesk) -> None:
        self._config = config
        self._desk = desk
        self._lock = threading.Lock()
        self._day = -1
        self._index = RestIndex()

    def current(self) -> RestIndex:
        with self._lock:
            if self._day != self._desk.day:
                self._day, self._index = self._desk.day, self._built(self._desk.day, self._index)
            return self._index

    def _built(self, day: int, before: RestIndex) -> RestIndex:
        """What is as it was in the index before keeps its time of change."""
        now = self._desk.started + timedelta(days=day)
        index = RestIndex()
        for source in self._config.groups.values():
            for _, line in source.lines(source.resource_types(), self._desk.started.date(), day):
                resource = _resource(line)
                if resource is not None:
                    _add(index, resource, line, partial(_updated, before, now))
        return index


def _updated(before: RestIndex, now: datetime, key: tuple[str, str], line: bytes) -> datetime:
    known = before.by_id.get(key)
    return known.updated if known and known.line == line else now


def _resource(line: bytes) -> dict[str, Any] | None:
    try:
        resource = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
        return None
    return resource if isinstance(resource.get("id"), str) else None


_Updated = Callable[[tuple[str, str], bytes], datetime]


def _add(index: RestIndex, resource: dict[str, Any], line: bytes, updated: _Updated) -> None:
    resource_type, resource_id = key = resource["resourceType"], resource["id"]
    code = resource.get("code")
    index.by_id[key] = Found(
        resource_id, line, _categories(resource), _codes([code] if code else []), updated(key, line)
    )
    patient = resource_id if resource_type == "Patient" else _patient_of(resource)
    if patient:
        index.of_patient.setdefault((resource_type, patient), {})[resource_id] = None
    for attachment in _attachments(resource):
        _add_binary(index, attachment, updated)


def _add_binary(index: RestIndex, attachment: dict[str, Any], updated: _Updated) -> None:
    """Documents are referred to and never exported: their content is made up here."""
    kind, _, binary_id = str(attachment.get("url", "")).partition("/")
    if kind != "Binary" or not binary_id or ("Binary", binary_id) in index.by_id:
        return
    content = f"<html><body><p>Synthetic note {binary_id[:8]}</p></body></html>"
    line = orjson.dumps(
        {
            "resourceType": "Binary",
            "id": binary_id,
            "contentType": attachment.get("contentType", "text/html"),
            "data": b64encode(content.encode()).decode(),
        }
    )
    key = ("Binary", binary_id)
    index.by_id[key] = Found(binary_id, line, frozenset(), frozenset(), updated(key, line))


def _attachments(resource: dict[str, Any]) -> list[dict[str, Any]]:
    if resource["resourceType"] != "DocumentReference":
        return []
    return [content.get("attachment", {}) for content in resource.get("content", ())]


def _categories(resource: dict[str, Any]) -> frozenset[str]:
    category = resource.get("category") or []
    found = _codes(category if isinstance(category, list) else [category])
    kind = _CATEGORY_OF_PLANS if resource["resourceType"] == "CarePlan" else _KINDS.get(resource["resourceType"])
    return found or frozenset({kind} if kind else ())


def _codes(concepts: list[Any]) -> frozenset[str]:
    codings = [coding for concept in concepts if isinstance(concept, dict) for coding in concept.get("coding", ())]
    return frozenset(str(coding.get("code")) for coding in codings if isinstance(coding, dict))


def _patient_of(resource: dict[str, Any]) -> str | None:
    for element in ("subject", "patient", "beneficiary"):
        target = resource.get(element)
        reference = target.get("reference") if isinstance(target, dict) else None
        if isinstance(reference, str) and reference.startswith("Patient/"):
            return reference.removeprefix("Patient/")
    return None
