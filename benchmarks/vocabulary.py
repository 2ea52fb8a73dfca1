"""Loading a vocabulary download and compiling its concept index: CPU seconds, memory and disk.

    python -m benchmarks.vocabulary [--concepts 1000000] [--folder DIR] [--json FILE]

The floor is COPY of the same files into plain tables without keys. The first load meets an empty database; the second
loads the same download under another label beside it, as a new release is.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import orjson
import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.athena import make_download
from benchmarks.memory import CpuSeconds, PeakMemory
from omop_schema import cdm
from pipeline.core.settings import Settings
from pipeline.warehouse.embedded.server import EmbeddedServer
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import install_schemas, schema_names
from pipeline.warehouse.vocabulary import compile_index, load_vocabulary

__all__ = ["main"]

_T = TypeVar("_T")
_LARGE = ("concept", "concept_relationship", "concept_ancestor")


@dataclass(frozen=True)
class Measured:
    """Of one step. Seconds are CPU seconds, user and system, unless they say otherwise; bytes are peaks."""

    step: str
    wall_seconds: float
    our_seconds: float
    server_seconds: float
    our_bytes: int
    server_bytes: int
    #: of the server's files and ours, after the step
    disk_bytes: int


def measure(folder: Path, concepts: int, loads: int, report: Callable[[str], None]) -> list[Measured]:
    """Everything is made below `folder`; the server that was started is stopped."""
    report("making the downloads")
    downloads = [folder / name for name in ("first", "second")[:loads]]
    for number, download in enumerate(downloads, start=1):
        make_download(download, concepts, label=f"v5.0 01-{'JAN' if number == 1 else 'FEB'}-20", seed=number)
    settings = Settings(home=folder / "home")
    runtime = Runtime(settings)
    server = EmbeddedServer(settings.home)
    vocab, etl = settings.vocab_schema, settings.etl_schema
    try:
        url = runtime.url
        install_schemas(url, **schema_names(settings))
        found: list[Measured] = []

        def step(name: str, action: Callable[[], _T]) -> _T:
            report(name)
            pid = server.status().pid
            started = time.perf_counter()
            with PeakMemory(pid) as peak, CpuSeconds(pid) as cpu:
                result = action()
            wall = time.perf_counter() - started
            disk = sum(file.stat().st_size for file in settings.home.rglob("*") if file.is_file())
            data = server.status().folder
            disk += sum(file.stat().st_size for file in Path(data).rglob("*") if file.is_file()) if data else 0
            found.append(Measured(name, wall, cpu.ours, cpu.postgres, peak.ours, peak.postgres, disk))
            return result

        step("floor: COPY alone", lambda: _copy(url, downloads[0]))
        for download in downloads:
            release = step(
                f"load {download.name}", partial(load_vocabulary, url, download, vocab_schema=vocab, etl_schema=etl)
            )
            compiling = partial(compile_index, url, release, vocab_schema=vocab, home=settings.home)
            step(f"compile {download.name}", compiling)
        return found
    finally:
        server.stop()


def _copy(url: str, download: Path) -> None:
    """The files as they are into tables without a key, which are dropped."""
    with psycopg.connect(url) as connection:
        for table in _LARGE:
            columns = ", ".join(f"{field.name} {field.datatype}" for field in cdm.fields(table))
            connection.execute(f"CREATE TABLE floor_{table} ({columns})".encode())
            options = "FORMAT csv, DELIMITER E'\\t', QUOTE E'\\b', HEADER"
            copy_in = f"COPY floor_{table} FROM STDIN ({options})".encode()
            with (download / f"{table.upper()}.csv").open("rb") as source, connection.cursor().copy(copy_in) as copy:
                while block := source.read(1 << 20):
                    copy.write(block)
        connection.rollback()


def _table(found: list[Measured], concepts: int) -> Table:
    table = Table(title=f"{concepts:,} concepts")
    for name in ("step", "wall, s", "our CPU, s", "server's CPU, s", "ours, MB", "server's, MB", "disk, MB"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for one in found:
        table.add_row(
            one.step,
            f"{one.wall_seconds:.1f}",
            f"{one.our_seconds:.1f}",
            f"{one.server_seconds:.1f}",
            f"{one.our_bytes / 1e6:,.0f}",
            f"{one.server_bytes / 1e6:,.0f}",
            f"{one.disk_bytes / 1e6:,.0f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--concepts", type=int, default=1_000_000, help="of the generated download (%(default)s)")
    parser.add_argument(
        "--loads", type=int, choices=(1, 2), default=2, help="of releases, one beside the other (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to work (the system's folder for temporary files)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    given = parser.parse_args()
    console = Console(width=max(Console().width, 110))
    folder = Path(tempfile.mkdtemp(prefix="epic-omop-vocabulary-", dir=given.folder))
    try:
        with console.status("starting") as status:
            found = measure(folder, given.concepts, given.loads, status.update)
        console.print(_table(found, given.concepts))
        if given.json:
            given.json.write_bytes(orjson.dumps([asdict(one) for one in found], option=orjson.OPT_INDENT_2))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
