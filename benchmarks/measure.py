"""One benchmark run: a warehouse of its own, the loads in their order, the floor, and what each took."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.exports import FIRST_DAY, World, write_day, write_volatile
from benchmarks.floor import CopyFloor, copy_floor, parse_floor, save_rows
from benchmarks.memory import MemoryPeak, PeakMemory
from benchmarks.start_up import start_up_seconds
from pipeline.clock import ManualClock
from pipeline.exports import ingest_folder
from pipeline.landing.store import LandedExport
from pipeline.omop.vocabulary import compile_index, load_vocabulary
from pipeline.replay import ingest_with_follow_ups
from pipeline.runtime import Runtime
from pipeline.settings import MAPPINGS_FOLDER, Settings
from pipeline.warehouse.embedded import EmbeddedServer
from pipeline.warehouse.publish import PublicationReport
from pipeline.warehouse.schema import install_schemas, transaction

__all__ = ["Load", "Measurements", "Options", "measure"]

_SITE = "benchmark"
_DAY_SECONDS = 86_400

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    patients: int
    workers: int
    #: Times that the first load, the floor and the load without changes are repeated; the best counts.
    repeat: int
    folder: Path


@dataclass(frozen=True)
class Load:
    """One load. Seconds are wall clock from the landed export to the commit, follow-ups included."""

    name: str
    lines: int
    outcomes: dict[str, int]
    #: CDM rows written or deleted.
    changed_rows: int
    seconds: float
    transform_seconds: float
    publish_seconds: float
    #: Lines that went through again because they depend on what changed, and their seconds.
    follow_up_lines: int
    follow_up_seconds: float
    peak_bytes: int
    postgres_peak_bytes: int
    #: Seconds of every repetition, in their order.
    all_seconds: tuple[float, ...] = ()


@dataclass
class Measurements:
    lines: int = 0
    bytes: int = 0
    files: int = 0
    #: Seconds from asking for the worker processes until all of them have imported the pipeline.
    start_up_seconds: float = 0.0
    parse_floor_seconds: float = 0.0
    copy_floor: CopyFloor = field(default_factory=lambda: CopyFloor(0, 0, 0.0, 0.0))
    loads: list[Load] = field(default_factory=list)
    load_average: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def floor_seconds(self) -> float:
        return self.parse_floor_seconds + self.copy_floor.seconds


def measure(options: Options, progress: Progress = lambda _: None) -> Measurements:
    """Run everything in `options.folder`, which is left as it is; the server that was started is stopped."""
    found = Measurements()
    world = World(options.patients)
    found.load_average["start"] = os.getloadavg()
    progress(f"generating {world.patients:,} patients")
    first = write_day(world, 0, options.folder / "day-0", options.workers)
    second = write_day(world, 1, options.folder / "day-1", options.workers)
    volatile = write_volatile(second, options.folder / "volatile", options.workers)
    files = sorted(first.glob("*.ndjson"))
    found.bytes, found.files = sum(file.stat().st_size for file in files), len(files)
    progress("parse floor")
    found.parse_floor_seconds = min(parse_floor(files, options.workers) for _ in range(options.repeat))
    found.start_up_seconds = min(start_up_seconds(options.workers) for _ in range(options.repeat))
    with _warehouse(options) as warehouse:
        _measure_loads(options, warehouse, found, (first, second, volatile), progress)
    found.load_average["end"] = os.getloadavg()
    return found


def _measure_loads(
    options: Options,
    warehouse: _Warehouse,
    found: Measurements,
    folders: tuple[Path, Path, Path],
    progress: Progress,
) -> None:
    first, second, volatile = folders
    firsts = []
    for number in range(options.repeat):
        progress(f"first load, {number + 1} of {options.repeat}")
        warehouse.reset()
        firsts.append(warehouse.load("first load", first))
    found.loads.append(_best(firsts))
    found.lines = firsts[0].lines
    progress("COPY floor")
    found.copy_floor = warehouse.copy_floor(options.folder / "rows", options.repeat)
    progress("nothing changed")
    found.loads.append(_best([warehouse.load("nothing changed", first) for _ in range(options.repeat)]))
    progress("a day later")
    found.loads.append(warehouse.load("a day later", second))
    progress("every line volatile")
    found.loads.append(warehouse.load("every line volatile", volatile))


def _best(loads: list[Load]) -> Load:
    best = min(loads, key=lambda load: load.seconds)
    return Load(**{**vars(best), "all_seconds": tuple(load.seconds for load in loads)})


class _Warehouse:
    """The embedded server of a home of its own, and the loads into it, each a day after the last."""

    def __init__(self, home: Path, workers: int) -> None:
        self.clock = ManualClock(datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, 6, tzinfo=UTC))
        self.runtime = Runtime(Settings(home=home, workers=workers), self.clock)
        self.server = EmbeddedServer(home)

    def reset(self) -> None:
        """An empty warehouse with the demonstration vocabulary."""
        settings, url = self.runtime.settings, self.runtime.url
        with transaction(url) as connection:
            for schema in (settings.cdm_schema, settings.vocab_schema, settings.etl_schema):
                connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        for folder in (settings.landing, settings.staging):
            shutil.rmtree(folder, ignore_errors=True)
        install_schemas(url, cdm=settings.cdm_schema, vocab=settings.vocab_schema, etl=settings.etl_schema)
        release = load_vocabulary(
            url,
            MAPPINGS_FOLDER / "demo_vocabulary",
            vocab_schema=settings.vocab_schema,
            etl_schema=settings.etl_schema,
        )
        compile_index(url, release, vocab_schema=settings.vocab_schema, home=settings.home)

    def load(self, name: str, folder: Path) -> Load:
        """Land the folder (not measured), then measure from the landed export to the commit."""
        export = self._land(folder)
        site = self.runtime.settings.site_or_folder(_SITE)
        with PeakMemory(self.server.status().pid) as peak:
            started = time.perf_counter()
            reports = ingest_with_follow_ups(self.runtime, site, export)
            seconds = time.perf_counter() - started
        return _load(name, reports, seconds, peak)

    def _land(self, folder: Path) -> LandedExport:
        self.clock.advance(_DAY_SECONDS)
        return ingest_folder(self.runtime, _SITE, folder)

    def copy_floor(self, folder: Path, repeat: int) -> CopyFloor:
        with self.runtime.connect() as connection:
            rows = save_rows(connection, self.runtime.settings, folder)
        floors = [copy_floor(self.runtime.url, folder, rows) for _ in range(repeat)]
        return min(floors, key=lambda floor: floor.seconds)

    def remove(self) -> None:
        self.server.stop()
        data = self.server.status().folder
        if data is not None:
            shutil.rmtree(data, ignore_errors=True)


@contextmanager
def _warehouse(options: Options) -> Iterator[_Warehouse]:
    warehouse = _Warehouse(options.folder / "home", options.workers)
    try:
        yield warehouse
    finally:
        warehouse.remove()


def _load(name: str, reports: list[PublicationReport], seconds: float, peak: MemoryPeak) -> Load:
    own, *follow_ups = reports
    return Load(
        name=name,
        lines=own.lines,
        outcomes=dict(own.outcomes),
        changed_rows=sum(report.changed_rows for report in reports),
        seconds=seconds,
        transform_seconds=own.transform_seconds,
        publish_seconds=own.publish_seconds,
        follow_up_lines=sum(report.lines for report in follow_ups),
        follow_up_seconds=sum(report.transform_seconds + report.publish_seconds for report in follow_ups),
        peak_bytes=peak.ours,
        postgres_peak_bytes=peak.postgres,
        all_seconds=(seconds,),
    )
