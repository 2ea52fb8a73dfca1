"""One benchmark run: a warehouse of its own, the loads in their order, the floor, and what each took."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.exports import FIRST_DAY, World, make_volatile, write_day
from benchmarks.floor import CopyFloor, copy_floor, parse_floor, save_rows
from benchmarks.memory import CpuSeconds, MemoryPeak, PeakMemory
from benchmarks.start_up import start_up_seconds
from pipeline.core.clock import ManualClock
from pipeline.core.settings import MAPPINGS_FOLDER, Settings
from pipeline.extract.bulk import ingest_folder
from pipeline.landing.store import LandedExport
from pipeline.load.load import load as load_export
from pipeline.publication.publish import PublicationReport
from pipeline.warehouse.embedded.server import EmbeddedServer
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import install_schemas, schema_names, transaction
from pipeline.warehouse.vocabulary import compile_index, load_vocabulary

__all__ = ["PARTS", "Load", "Measurements", "Options", "measure", "measured_warehouse"]

_SITE = "benchmark"
_DAY_SECONDS = 86_400

#: What can be measured beside the first load, in this order.
PARTS = ("floor", "unchanged", "day", "volatile", "workers")

#: Patients of the world with which one worker is compared with several: the transform stage needs no more.
_WORKERS_PATIENTS = 4000

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    patients: int
    workers: int
    #: Times that the first load, the floor and the load without changes are repeated; the best counts.
    repeat: int
    folder: Path
    parts: Collection[str] = PARTS


@dataclass(frozen=True)
class Load:
    """One load. Seconds are wall clock from the landed export to the commit, follow-ups included."""

    name: str
    lines: int
    outcomes: dict[str, int]
    #: CDM rows written or deleted.
    changed_rows: int
    #: All of it, with the start of the worker processes.
    seconds: float
    #: Until the first worker process had imported the pipeline, with nothing else to do meanwhile.
    start_seconds: float
    transform_seconds: float
    #: Publication, of which for the derived tables.
    publish_seconds: float
    derived_seconds: float
    #: Steps of transform and publication by name.
    steps: dict[str, float]
    #: Lines that went through again because they depend on what changed, and their seconds.
    follow_up_lines: int
    follow_up_seconds: float
    #: CPU seconds of our processes and of PostgreSQL's: other work on the machine changes them less.
    cpu_seconds: float
    postgres_cpu_seconds: float
    peak_bytes: int
    postgres_peak_bytes: int
    #: Seconds of every repetition, in their order.
    all_seconds: tuple[float, ...] = ()
    #: The machine's load average of the last minute, when the load began.
    load_average: float = 0.0

    @property
    def net_seconds(self) -> float:
        """What is compared with the floor: without the start of the worker processes."""
        return self.seconds - self.start_seconds


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
    #: Workers → seconds of the transform stage of one and the same export, without their start.
    transform_by_workers: dict[int, float] = field(default_factory=dict)
    load_average: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def floor_seconds(self) -> float:
        return self.parse_floor_seconds + self.copy_floor.seconds


def measure(options: Options, progress: Progress = lambda _: None) -> Measurements:
    """Run everything in `options.folder`, which is left as it is; the server that was started is stopped.

    An export's folder is removed once it has landed for the last time, so that at most two lie beside the landing
    store.
    """
    found = Measurements()
    world = World(options.patients)
    found.load_average["start"] = os.getloadavg()
    progress(f"generating {world.patients:,} patients")
    first = write_day(world, 0, options.folder / "day-0", options.workers)
    files = sorted(first.glob("*.ndjson"))
    found.bytes, found.files = sum(file.stat().st_size for file in files), len(files)
    if "floor" in options.parts:
        progress("parse floor")
        found.parse_floor_seconds = min(parse_floor(files, options.workers) for _ in range(options.repeat))
    found.start_up_seconds = min(start_up_seconds(options.workers) for _ in range(options.repeat))
    with measured_warehouse(options) as warehouse:
        _measure_loads(options, warehouse, found, first, progress)
        if "workers" in options.parts:
            _measure_workers(options, warehouse, found, progress)
    found.load_average["end"] = os.getloadavg()
    return found


def _measure_loads(
    options: Options, warehouse: _Warehouse, found: Measurements, first: Path, progress: Progress
) -> None:
    firsts = []
    for number in range(options.repeat):
        progress(f"first load, {number + 1} of {options.repeat}")
        warehouse.reset()
        firsts.append(warehouse.load("first load", first))
    found.loads.append(_best(firsts))
    found.lines = firsts[0].lines
    if "floor" in options.parts:
        progress("COPY floor")
        found.copy_floor = warehouse.copy_floor(options.folder / "rows", options.repeat)
    if "unchanged" in options.parts:
        progress("nothing changed")
        found.loads.append(_best([warehouse.load("nothing changed", first) for _ in range(options.repeat)]))
    last = first
    if "day" in options.parts:
        progress("a day later")
        shutil.rmtree(first)
        last = write_day(World(options.patients), 1, options.folder / "day-1", options.workers)
        found.loads.append(warehouse.load("a day later", last))
    if "volatile" in options.parts:
        progress("every line volatile")
        make_volatile(last, options.workers)
        found.loads.append(warehouse.load("every line volatile", last))
    shutil.rmtree(last)


def _measure_workers(options: Options, warehouse: _Warehouse, found: Measurements, progress: Progress) -> None:
    world = World(min(options.patients, _WORKERS_PATIENTS))
    folder = write_day(world, 0, options.folder / "workers", options.workers)
    for workers in sorted({1, options.workers}):
        seconds = []
        for number in range(options.repeat):
            progress(f"transform with {workers} workers, {number + 1} of {options.repeat}")
            warehouse.reset()
            load = warehouse.load("first load", folder, workers=workers)
            seconds.append(load.transform_seconds - load.start_seconds)
        found.transform_by_workers[workers] = min(seconds)


def _best(loads: list[Load]) -> Load:
    best = min(loads, key=lambda load: load.seconds)
    return replace(best, all_seconds=tuple(load.seconds for load in loads))


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
        install_schemas(url, **schema_names(settings))
        release = load_vocabulary(
            url,
            MAPPINGS_FOLDER / "demo_vocabulary",
            vocab_schema=settings.vocab_schema,
            etl_schema=settings.etl_schema,
        )
        compile_index(url, release, vocab_schema=settings.vocab_schema, home=settings.home)

    def load(self, name: str, folder: Path, *, workers: int | None = None) -> Load:
        """Land the folder (not measured), then measure from the landed export to the commit."""
        export = self._land(folder)
        runtime = self.runtime
        if workers is not None:
            runtime = Runtime(self.runtime.settings.model_copy(update={"workers": workers}), self.clock)
        site = runtime.settings.site_or_folder(_SITE)
        average = os.getloadavg()[0]
        server = self.server.status().pid
        with PeakMemory(server) as peak, CpuSeconds(server) as cpu:
            started = time.perf_counter()
            reports = load_export(runtime, site, export).reports
            seconds = time.perf_counter() - started
        return replace(_load(name, reports, seconds, peak, cpu), load_average=average)

    def _land(self, folder: Path) -> LandedExport:
        self.clock.advance(_DAY_SECONDS)
        return ingest_folder(self.runtime, _SITE, folder)

    def copy_floor(self, folder: Path, repeat: int) -> CopyFloor:
        with self.runtime.connect() as connection:
            rows = save_rows(connection, self.runtime.settings, folder)
        floors = [copy_floor(self.runtime.url, folder, rows) for _ in range(repeat)]
        shutil.rmtree(folder)
        return min(floors, key=lambda floor: floor.seconds)

    def remove(self) -> None:
        self.server.stop()
        data = self.server.status().folder
        if data is not None:
            shutil.rmtree(data, ignore_errors=True)


@contextmanager
def measured_warehouse(options: Options) -> Iterator[_Warehouse]:
    warehouse = _Warehouse(options.folder / "home", options.workers)
    try:
        yield warehouse
    finally:
        warehouse.remove()


def _load(name: str, reports: list[PublicationReport], seconds: float, peak: MemoryPeak, cpu: CpuSeconds) -> Load:
    own, *follow_ups = reports
    return Load(
        name=name,
        lines=own.lines,
        outcomes=dict(own.outcomes),
        changed_rows=sum(report.changed_rows for report in reports),
        seconds=seconds,
        start_seconds=own.start_seconds,
        transform_seconds=own.transform_seconds,
        publish_seconds=own.publish_seconds,
        derived_seconds=own.derived_seconds,
        steps={step: round(taken, 3) for step, taken in own.steps.items()},
        follow_up_lines=sum(report.lines for report in follow_ups),
        follow_up_seconds=sum(report.transform_seconds + report.publish_seconds for report in follow_ups),
        cpu_seconds=cpu.ours,
        postgres_cpu_seconds=cpu.postgres,
        peak_bytes=peak.ours,
        postgres_peak_bytes=peak.postgres,
        all_seconds=(seconds,),
    )
