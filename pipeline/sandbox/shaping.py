"""Faults of what an export holds: lines, further files, and the manifest. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from pipeline.fhir.lines import BYTE_ORDER_MARK
from pipeline.sandbox.faults import (
    Deleted,
    Duplicate,
    EmptyOutput,
    Fault,
    FaultTally,
    LinesFault,
    LinkLoop,
    ManifestVersion,
    MissingTypes,
    OtherAddress,
    Outcomes,
    Pages,
    TransactionTime,
    TypeName,
    WrongCount,
)

__all__ = ["ExtraFile", "FileShape", "ManifestShape"]

Category = Literal["output", "error", "deleted"]

_LONG_TEXT = "synthetic text "
_NOT_ASCII = "Größe 5 µg – 温度 ≥ 38 ℃ 🩺 " * 8


@dataclass(frozen=True)
class ExtraFile:
    """A file that a fault adds to an export, listed after the others."""

    category: Category
    resource_type: str
    lines: tuple[bytes, ...]


class FileShape:
    """How the files of one job are written. Keeps what it has seen: one for each time that files are written."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = faults
        self._how = [fault for fault in faults if isinstance(fault, LinesFault)]
        self._begun: set[str] = set()
        self._deleted: dict[Deleted, list[str]] = {fault: [] for fault in faults if isinstance(fault, Deleted)}
        self._first: dict[str, bytes] = {}

    def lines(self, resource_type: str, line: bytes) -> Iterator[bytes]:
        """What is written for a line of the source."""
        if not self._faults:
            yield line
            return
        if self._is_deleted(resource_type, line):
            return
        if resource_type not in self._first and _id_of(line):
            self._first[resource_type] = line
        how = self._of(resource_type)
        if resource_type not in self._begun:
            self._begun.add(resource_type)
            yield from _lines_before(resource_type, how)
        if how.keys() & {"no-last-updated", "not-ascii"}:
            line = _changed(line, how)
        yield line + b"\r" if "crlf" in how else line
        if "blank-lines" in how:
            yield b""
            yield b" \t"

    def _of(self, resource_type: str) -> dict[str, LinesFault]:
        return {fault.how: fault for fault in self._how if fault.type in (None, resource_type)}

    def _is_deleted(self, resource_type: str, line: bytes) -> bool:
        for fault, gone in self._deleted.items():
            if fault.type == resource_type and len(gone) < fault.resources and (resource_id := _id_of(line)):
                gone.append(resource_id)
                return True
        return False

    def start(self, resource_type: str) -> bytes:
        """What a file begins with."""
        return BYTE_ORDER_MARK if "bom" in self._of(resource_type) else b""

    def ends_with_newline(self, resource_type: str) -> bool:
        return "no-last-newline" not in self._of(resource_type)

    def extra_files(self) -> Iterator[ExtraFile]:
        """To be asked for after all lines."""
        for fault in self._faults:
            if isinstance(fault, Duplicate) and fault.type in self._first:
                again = {**orjson.loads(self._first[fault.type]), **fault.set}
                yield ExtraFile("output", fault.type, (orjson.dumps(again),))
        for fault in self._faults:
            if isinstance(fault, Outcomes):
                yield ExtraFile("error", "OperationOutcome", tuple(_outcome(fault, issue) for issue in fault.issues))
        for deleted, ids in self._deleted.items():
            if ids:
                yield ExtraFile("deleted", "Bundle", (_bundle(deleted.type, ids),))


def _id_of(line: bytes) -> str | None:
    try:
        resource = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    found = resource.get("id") if isinstance(resource, dict) else None
    return found if isinstance(found, str) else None


def _lines_before(resource_type: str, how: dict[str, LinesFault]) -> Iterator[bytes]:
    if "malformed-line" in how:
        yield b'{"resourceType":"%s","id":"malformed' % resource_type.encode()
    if "long-line" in how:
        frame = b'{"resourceType":"%s","id":"long-line","text":{"status":"generated","div":"<div>%s</div>"}}'
        length = how["long-line"].bytes
        text = (_LONG_TEXT * (length // len(_LONG_TEXT) + 1))[: max(0, length - len(frame) - len(resource_type) + 4)]
        yield frame % (resource_type.encode(), text.encode())


def _changed(line: bytes, how: dict[str, LinesFault]) -> bytes:
    try:
        resource = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    if not isinstance(resource, dict):
        return line
    if "no-last-updated" in how and isinstance(resource.get("meta"), dict):
        resource["meta"].pop("lastUpdated", None)
    if "not-ascii" in how:
        resource["text"] = {"status": "generated", "div": f"<div>{_NOT_ASCII}</div>"}
    return orjson.dumps(resource)


def _outcome(fault: Outcomes, issue: str) -> bytes:
    severity, _, code = issue.partition(" ")
    details: dict[str, Any] = {"text": "Played by the sandbox."}
    if fault.epic_code:
        system = "urn:oid:1.2.840.114350.1.13.0.1.7.2.657369"
        details["coding"] = [{"system": system, "code": fault.epic_code}]
    entry = {"severity": severity, "code": code or "processing", "details": details}
    return orjson.dumps({"resourceType": "OperationOutcome", "issue": [entry]})


def _bundle(resource_type: str, ids: Sequence[str]) -> bytes:
    entries = [{"request": {"method": "DELETE", "url": f"{resource_type}/{one}"}} for one in ids]
    return orjson.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries})


_OF_MANIFEST = (TransactionTime, EmptyOutput, MissingTypes, WrongCount, OtherAddress, TypeName, Pages, LinkLoop)


class ManifestShape:
    """What the faults make of manifests."""

    def __init__(self, tally: FaultTally) -> None:
        self._tally = tally
        self._of_pages: list[Fault] = []
        versions = [fault for fault in tally.faults if isinstance(fault, ManifestVersion)]
        self._version = versions[-1] if versions else None

    @property
    def separate_status(self) -> bool:
        """Whether a status answer is 200 whatever the export's state, which X-Export-Status then says."""
        return self._version is not None and self._version.separate_status

    def shaped(self, manifest: dict[str, Any], url: str, page: int) -> dict[str, Any]:
        """One page (from 1) of the manifest that `url` gives. Lists are changed in place."""
        if page == 1:  # the others are of the manifest whose first page was asked for
            self._of_pages = self._tally.take(lambda fault: isinstance(fault, _OF_MANIFEST))
        due = self._of_pages
        for fault in due:
            _edit(fault, manifest)
        pages = next((fault for fault in due if isinstance(fault, Pages)), None)
        if pages:
            _cut_to_page(manifest, url, page, pages.files)
        if any(isinstance(fault, LinkLoop) for fault in due):
            manifest["link"] = [{"relation": "next", "url": url}]
        return self._in_version(manifest)

    def _in_version(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if self._version is None:
            return manifest
        if self._version.version == "stu2":
            return {**manifest, "extension": {"http://example.org/note": "of the sandbox"}}
        if self._version.version == "stu3":
            return {"deleted": [], **manifest}
        outcomes = manifest.pop("error")
        del manifest["request"]
        extension = [{"url": "http://example.org/note", "valueString": "of the sandbox"}]
        return {**manifest, "outcome": outcomes, "extension": extension, "outputFormat": "application/fhir+ndjson"}


def _edit(fault: Fault, manifest: dict[str, Any]) -> None:
    output: list[dict[str, Any]] = manifest["output"]
    if isinstance(fault, TransactionTime):
        manifest.pop("transactionTime", None)
        if fault.time is not None:
            manifest["transactionTime"] = fault.time
    elif isinstance(fault, EmptyOutput):
        output.clear()
    elif isinstance(fault, MissingTypes):
        output[:] = [entry for entry in output if entry["type"] not in fault.types]
    elif isinstance(fault, WrongCount | OtherAddress | TypeName):
        entry = next((entry for entry in output if entry["type"] == fault.type), None)
        if entry is None:
            return
        if isinstance(fault, WrongCount):
            entry["count"] = entry["count"] + fault.off_by if fault.count is None else fault.count
        elif isinstance(fault, OtherAddress):
            entry["url"] = fault.url
        else:
            entry["type"] = fault.name


def _cut_to_page(manifest: dict[str, Any], url: str, page: int, size: int) -> None:
    """Output by pages; the other lists come with the first one."""
    output = manifest["output"]
    rest = output[page * size :]
    manifest["output"] = output[(page - 1) * size : page * size]
    if page > 1:
        manifest.pop("deleted", None)
        manifest["error"] = []
    if rest:
        manifest["link"] = [{"relation": "next", "url": f"{url}?page={page + 1}"}]
