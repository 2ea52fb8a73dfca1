"""Folders of NDJSON that a benchmark loads: a world of synthetic patients, its next day, and a volatile copy.

Made in parallel processes, in files as small as Epic's.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import orjson

from pipeline.sandbox.directory import Directory
from pipeline.sandbox.generator import generate
from pipeline.settings import DEFAULT_RESOURCE_TYPES

__all__ = ["FIRST_DAY", "World", "write_day", "write_volatile"]

#: All dates of the world lie around this day; the runs' clock begins there too.
FIRST_DAY = date(2026, 1, 1)

#: Epic's files hold no more resources than this, so that a large export is thousands of files.
LINES_PER_FILE = 3000

#: What a server stamps anew on every line of a volatile export.
_VOLATILE_STAMP = "2026-02-03T04:05:06.789Z"


@dataclass(frozen=True)
class World:
    """Synthetic patients of the types that a site asks for by default: those that have a mapping."""

    patients: int
    seed: int = 1


def write_day(world: World, day: int, folder: Path, processes: int) -> Path:
    """The full export of a day as `<Type>.<part>-<number>.ndjson` files in `folder`, which is made."""
    folder.mkdir(parents=True)
    with _pool(processes) as pool:
        for done in [pool.submit(_write_part, world, day, folder, part, processes) for part in range(processes)]:
            done.result()
    return folder


def _write_part(world: World, day: int, folder: Path, part: int, parts: int) -> None:
    types = frozenset(DEFAULT_RESOURCE_TYPES)
    if part:  # every part of a world comes with what all patients share: it is wanted once
        types -= {resource_type for resource_type, _ in Directory(world.seed, world.patients).resources()}
    by_type: dict[str, list[bytes]] = {}
    files: Counter[str] = Counter()

    def write(resource_type: str) -> None:
        path = folder / f"{resource_type}.{part:03d}-{files[resource_type]:05d}.ndjson"
        path.write_bytes(b"".join(by_type.pop(resource_type)))
        files[resource_type] += 1

    for resource_type, line in generate(world.patients, world.seed, FIRST_DAY, day, types=types, share=(part, parts)):
        lines = by_type.setdefault(resource_type, [])
        lines.append(line + b"\n")
        if len(lines) == LINES_PER_FILE:
            write(resource_type)
    for resource_type in list(by_type):
        write(resource_type)


def write_volatile(source: Path, folder: Path, processes: int) -> Path:
    """A copy whose every line differs in bytes and in nothing else: keys in another order, new meta.lastUpdated."""
    folder.mkdir(parents=True)
    _each_file(_volatile_file, source, folder, processes)
    return folder


def _each_file(function: Callable[[Path, Path], None], source: Path, folder: Path, processes: int) -> None:
    with _pool(processes) as pool:
        files = sorted(source.glob("*.ndjson"))
        for done in [pool.submit(function, file, folder / file.name) for file in files]:
            done.result()


def _volatile_file(source: Path, target: Path) -> None:
    with source.open("rb") as lines, target.open("wb", buffering=1 << 20) as out:
        for line in lines:
            out.write(volatile_line(line))


def volatile_line(line: bytes) -> bytes:
    """The line with its keys in reverse order and a new meta.lastUpdated; one that is no resource stays as it is."""
    try:
        resource: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    if not isinstance(resource, dict):
        return line
    turned = dict(reversed(resource.items()))
    turned["meta"] = {**(turned.get("meta") or {}), "lastUpdated": _VOLATILE_STAMP}
    return orjson.dumps(turned) + b"\n"


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
