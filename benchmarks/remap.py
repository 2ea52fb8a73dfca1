"""`python -m benchmarks.remap`: one local code is mapped, and what it costs to find and map the resources that hold it.

A world of synthetic patients is loaded, with a few conditions whose local code nobody knows. The release with a map of that code
is then compared with what the loads left, and remapped; and the same release once more. Nothing here measures the loading
of the vocabulary.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.exports import World, patients_of, write_day
from benchmarks.measure import Options, measured_warehouse
from benchmarks.memory import CpuSeconds, PeakMemory
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.load.remap import remap, remap_plan
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.vocabulary import load_vocabulary

__all__ = ["main"]

_SITE = "benchmark"
#: No vocabulary knows it, until it is mapped to a concept of the demonstration vocabulary.
_SYSTEM, _CODE, _TARGET = "urn:oid:1.2.3.4", "LOCAL-4711", 201826
_HOLDERS = 20
_HEADER = (
    "source_code\tsource_concept_id\tsource_vocabulary_id\tsource_code_description\ttarget_concept_id"
    "\ttarget_vocabulary_id\tvalid_start_date\tvalid_end_date\tinvalid_reason"
)


@dataclass(frozen=True)
class Step:
    """One measured step. Seconds; bytes of our processes at the peak."""

    name: str
    seconds: float
    cpu: float
    postgres_cpu: float
    peak: int
    found: str


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remap", description="Cost of one mapped code.")
    parser.add_argument("--resources", type=int, default=200_000, help="about so many resources (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the transform stage (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the warehouse is made")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="epic-omop-remap-", dir=given.folder))
    try:
        _print(Console(), _measure(given.resources, given.workers, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(resources: int, workers: int, folder: Path) -> list[Step]:
    patients = patients_of(resources)
    day = write_day(World(patients), 0, folder / "day", workers)
    _add_holders(day)
    with measured_warehouse(Options(patients, workers, 1, folder, ())) as warehouse:
        warehouse.reset()
        runtime, server = warehouse.runtime, warehouse.server.status().pid
        first = warehouse.load("first load", day)
        steps = [
            Step(
                "first load",
                first.seconds,
                first.cpu_seconds,
                first.postgres_cpu_seconds,
                first.peak_bytes,
                f"{first.lines:,} lines; answers {first.steps['vocabulary uses']:.2f} s,"
                f" comparison {first.steps['vocabulary changes']:.3f} s",
            )
        ]
        night = warehouse.load("unchanged night", day)
        steps.append(
            Step(
                "unchanged night",
                night.seconds,
                night.cpu_seconds,
                night.postgres_cpu_seconds,
                night.peak_bytes,
                f"answers {night.steps['vocabulary uses']:.3f} s, comparison {night.steps['vocabulary changes']:.3f} s",
            )
        )
        site = runtime.settings.site_or_folder(_SITE)
        steps.append(_step("same release: dry run", server, lambda: _planned(runtime, remap_plan(runtime, site).rows)))
        steps.append(_step("same release: remap", server, lambda: f"{remap(runtime, site).mapped.total()} mapped"))
        _map_code(runtime, folder / "release")
        steps.append(_step("one code: dry run", server, lambda: _planned(runtime, remap_plan(runtime, site).rows)))
        steps.append(_step("one code: remap", server, lambda: f"{remap(runtime, site).mapped.total()} mapped"))
    return steps


def _planned(_runtime: Runtime, rows: object) -> str:
    return f"rows {rows}"


def _step(name: str, server: int | None, work: Callable[[], str]) -> Step:
    with PeakMemory(server) as peak, CpuSeconds(server) as cpu:
        started = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - started
    return Step(name, seconds, cpu.ours, cpu.postgres, peak.ours, found)


def _add_holders(day: Path) -> None:
    """Conditions of the world's patients with a code that nobody knows."""
    file = next(iter(sorted(day.glob("Condition.*.ndjson"))))
    lines = file.read_bytes().splitlines()
    held = []
    for number, line in enumerate(lines[:_HOLDERS]):
        condition = orjson.loads(line)
        condition |= {"id": f"local-{number}", "code": {"coding": [{"system": _SYSTEM, "code": _CODE}]}}
        held.append(orjson.dumps(condition))
    file.write_bytes(b"\n".join([*lines, *held]) + b"\n")


def _map_code(runtime: Runtime, folder: Path) -> None:
    """The demonstration vocabulary with a map of the local code."""
    shutil.copytree(MAPPINGS_FOLDER / "demo_vocabulary", folder)
    row = f"{_CODE}\t0\t{_SYSTEM}\t\t{_TARGET}\tSNOMED\t19700101\t20991231\t"
    (folder / "SOURCE_TO_CONCEPT_MAP.csv").write_text(f"{_HEADER}\n{row}\n", encoding="utf-8")
    settings = runtime.settings
    load_vocabulary(runtime.url, folder, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema)


def _print(console: Console, steps: list[Step]) -> None:
    table = Table("step", "seconds", "CPU s", "PostgreSQL CPU s", "peak MB", "found")
    for step in steps:
        table.add_row(
            step.name,
            f"{step.seconds:.2f}",
            f"{step.cpu:.2f}",
            f"{step.postgres_cpu:.2f}",
            f"{step.peak / 1e6:.0f}",
            step.found,
        )
    console.print(table)


if __name__ == "__main__":
    main()
