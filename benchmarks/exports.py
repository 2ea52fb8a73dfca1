"""Folders of NDJSON that a benchmark loads: a world of synthetic patients, its next day, and a volatile copy.

Written by parallel processes, each with a share of the patients, in files as small as Epic's. No process holds more
than one open file of each resource type, so that a world may have millions of resources.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import orjson

from pipeline.core.files import put_in_place
from pipeline.sandbox.directory import Directory
from pipeline.sandbox.generator import generate

__all__ = ["FIRST_DAY", "World", "make_volatile", "patients_of", "write_day"]

#: All dates of the world lie around this day; the runs' clock begins there too.
FIRST_DAY = date(2026, 1, 1)

#: Types of the world: the same in every version, so that measurements can be compared.
_TYPES = (
    *("Patient", "Encounter", "Condition", "Observation", "MedicationRequest", "Medication", "Immunization"),
    *("Procedure", "Practitioner", "Organization", "Location"),
)

#: Epic's files hold no more resources than this, so that a large export is thousands of files.
LINES_PER_FILE = 3000

#: Resources of a patient of the synthetic world, on average.
_RESOURCES_PER_PATIENT = 49

#: What a server stamps anew on every line of a volatile export.
_VOLATILE_STAMP = "2026-02-03T04:05:06.789Z"
_SIGNATURE = "signature=6f9e2c"


@dataclass(frozen=True)
class World:
    """Synthetic patients, of `_TYPES`."""

    patients: int
    seed: int = 1


def patients_of(resources: int) -> int:
    """How many patients have about as many resources."""
    return max(1, round(resources / _RESOURCES_PER_PATIENT))


def write_day(world: World, day: int, folder: Path, processes: int) -> Path:
    """The full export of a day as `<Type>.<part>-<number>.ndjson` files in `folder`, which is made."""
    folder.mkdir(parents=True)
    with _pool(processes) as pool:
        for done in [pool.submit(_write_part, world, day, folder, part, processes) for part in range(processes)]:
            done.result()
    return folder


def _write_part(world: World, day: int, folder: Path, part: int, parts: int) -> None:
    shared: set[tuple[str, str]] = set()
    if part:  # every part of a world comes with what all patients share: it is needed once
        resources = Directory(world.seed, world.patients).resources()
        shared = {(resource_type, resource["id"]) for resource_type, resource in resources}
    types_shared = {resource_type for resource_type, _ in shared}
    by_type: dict[str, list[bytes]] = {}
    files: Counter[str] = Counter()

    def write(resource_type: str) -> None:
        path = folder / f"{resource_type}.{part:03d}-{files[resource_type]:05d}.ndjson"
        path.write_bytes(b"".join(by_type.pop(resource_type)))
        files[resource_type] += 1

    for resource_type, line in generate(
        world.patients, world.seed, FIRST_DAY, day, types=frozenset(_TYPES), share=(part, parts)
    ):
        if resource_type in types_shared and (resource_type, orjson.loads(line)["id"]) in shared:
            continue
        lines = by_type.setdefault(resource_type, [])
        lines.append(line + b"\n")
        if len(lines) == LINES_PER_FILE:
            write(resource_type)
    for resource_type in list(by_type):
        write(resource_type)


def make_volatile(folder: Path, processes: int) -> None:
    """Write every line of a folder anew so that it differs in bytes and in nothing else: see `volatile_line`."""
    files = sorted(folder.glob("*.ndjson"))
    with _pool(processes) as pool:
        for _ in pool.map(_volatile_file, files):
            pass


def _volatile_file(file: Path) -> None:
    target = file.with_suffix(".new")
    with file.open("rb") as lines, target.open("wb", buffering=1 << 20) as out:
        for line in lines:
            out.write(volatile_line(line))
    put_in_place(target, file, is_durable=False)


def volatile_line(line: bytes) -> bytes:
    """The line as a server may write the same resource next time; one that is no resource stays as it is.

    Keys are in another order at every depth, meta.lastUpdated and meta.versionId are new, and the URLs of attachments
    carry a new signature.
    """
    try:
        resource: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    if not isinstance(resource, dict):
        return line
    for attachment in _attachments(resource):
        if isinstance(attachment.get("url"), str):
            attachment["url"] = f"{attachment['url'].partition('?')[0]}?{_SIGNATURE}"
    resource["meta"] = {**(resource.get("meta") or {}), "lastUpdated": _VOLATILE_STAMP, "versionId": "2"}
    return orjson.dumps(_turned(resource)) + b"\n"


def _attachments(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (content["attachment"] for content in resource.get("content", ()) if "attachment" in content)
    yield from resource.get("presentedForm", ())


def _turned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    return [_turned(item) for item in value] if isinstance(value, list) else value


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
