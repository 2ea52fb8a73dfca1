"""`python -m benchmarks.download`: how fast files are landed from a server on loopback, and in how much memory.

The simulated Epic runs in a process of its own; each measurement is a fresh process, so that its largest resident set
is that of the download alone. From the first request to the finished export: decompressing, counting lines, SHA-256,
fsync and notes for resuming are contained. No warehouse is involved.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path

import orjson
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from rich.console import Console
from rich.table import Table

from pipeline.core.clock import SystemClock
from pipeline.core.settings import SiteSettings
from pipeline.extract.bulk import protocol
from pipeline.extract.bulk.download import ExportDownload
from pipeline.extract.bulk.protocol import Manifest, StillRunning
from pipeline.extract.smart.session import open_session
from pipeline.landing.store import LandingStore
from pipeline.sandbox.config import RegisteredClient, SandboxConfig
from pipeline.sandbox.faults import NoGzip
from pipeline.sandbox.server import RunningSandbox
from pipeline.sandbox.sources import GeneratedSource
from pipeline.warehouse.export_jobs import ExportJob

__all__ = ["main"]

_TYPE = "Observation"


@dataclass(frozen=True)
class Volume:
    """What is exported: files of about so many bytes."""

    files: int
    file_bytes: int


@dataclass(frozen=True)
class Measured:
    """One download. Bytes are decompressed ones; `rss_bytes` the largest resident set of the process, of which
    `started_bytes` were there before its first request."""

    workers: int
    gzip: bool
    bytes: int
    seconds: float
    rss_bytes: int
    started_bytes: int


@dataclass(frozen=True)
class _Lines:
    """A day's Observations, again and again, until the volume is reached."""

    volume: Volume

    def resource_types(self) -> Collection[str]:
        return (_TYPE,)

    def lines(self, types: Collection[str], first_day: date, day: int) -> Iterator[tuple[str, bytes]]:
        del types
        own = list(_some_lines(first_day, day))
        return itertools.islice(itertools.cycle(own), self.volume.files * _lines_a_file(self.volume, own))


def _some_lines(first_day: date, day: int) -> Iterator[tuple[str, bytes]]:
    lines = GeneratedSource(50, seed=1).lines((_TYPE,), first_day, day)
    return (line for line in lines if line[1].strip())


def _lines_a_file(volume: Volume, lines: Sequence[tuple[str, bytes]]) -> int:
    average = sum(len(line) + 1 for _, line in lines) / len(lines)
    return max(1, round(volume.file_bytes / average))


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    console = Console(width=110)
    found = []
    for gzip in (False, True):
        volume = Volume(given.files, given.megabytes * 1_000_000)
        found += _measure(volume, given.workers, gzip=gzip)
    console.print(_table(found, f"{given.files} files of {given.megabytes} MB"))
    if given.large:
        large = _measure(Volume(1, given.large * 1_000_000), [1], gzip=False)
        console.print(_table(large, f"One file of {given.large} MB"))
        found += large
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} cores, shared with the server's process; load average at the end {load}.")
    if given.json:
        given.json.write_bytes(orjson.dumps([asdict(one) for one in found], option=orjson.OPT_INDENT_2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.download", description=__doc__)
    parser.add_argument("--files", type=int, default=64, help="number of files (%(default)s)")
    parser.add_argument("--megabytes", type=int, default=8, help="size of each, decompressed (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 8], help="parallel downloads (1 4 8)")
    parser.add_argument("--large", type=int, default=2000, help="megabytes of one large file, 0: none (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    return parser


def _measure(volume: Volume, workers: Sequence[int], *, gzip: bool) -> list[Measured]:
    folder = Path(tempfile.mkdtemp(prefix="epic-omop-download-"))
    try:
        with _server(volume, folder, gzip=gzip) as site:
            return [_in_fresh_process(site, folder, number, gzip=gzip) for number in workers]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _server(volume: Volume, folder: Path, *, gzip: bool) -> Iterator[SiteSettings]:
    key = ec.generate_private_key(ec.SECP384R1())
    file = folder / "key.pem"
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, volume, folder / "server", public, gzip))
    process.start()
    try:
        yield SiteSettings(
            name="benchmark",
            fhir_url=ours.recv(),
            client_id="benchmark",
            private_key_file=file,
            groups=("g",),
            resource_types=(_TYPE,),
            poll_floor_seconds=0,
            test_mode=True,
        )
    finally:
        ours.send(None)
        process.join()


def _serve(pipe: Connection, volume: Volume, folder: Path, public_key: str, gzip: bool) -> None:
    source = _Lines(volume)
    config = SandboxConfig(
        groups={"g": source},
        clients=(RegisteredClient("benchmark", (public_key,)),),
        kickoff_window_seconds=0,
        polls_until_complete=0,
        retry_after_seconds=1,
        resources_per_file=_lines_a_file(volume, list(_some_lines(date(2026, 1, 1), 0))),
        state_dir=folder,
        faults=() if gzip else (NoGzip(),),
    )
    with RunningSandbox(config) as sandbox:
        pipe.send(sandbox.fhir_url)
        pipe.recv()


def _in_fresh_process(site: SiteSettings, folder: Path, workers: int, *, gzip: bool) -> Measured:
    settings = site.model_copy(update={"download_workers": workers})
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_download, settings, folder, gzip).result()


def _download(site: SiteSettings, folder: Path, gzip: bool) -> Measured:
    with open_session(site, SystemClock()) as session:
        status_url = protocol.kick_off(session, "g", (_TYPE,)).status_url
        while isinstance(status := protocol.poll(session, status_url), StillRunning):
            time.sleep(0.2)
        job = _job(site, status_url, status)
        store = LandingStore(folder / "landing")
        before = _largest_resident_set()
        started = time.perf_counter()
        export = ExportDownload(session, job, store.begin(site.name, 1), save_manifest=lambda _: None).run()
        seconds = time.perf_counter() - started
        size = sum(file.bytes for file in export.files)
        protocol.delete_job(session, status_url)
    shutil.rmtree(store.root)
    return Measured(site.download_workers, gzip, size, seconds, _largest_resident_set(), before)


def _largest_resident_set() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _job(site: SiteSettings, status_url: str, manifest: Manifest) -> ExportJob:
    now = SystemClock().now()
    return ExportJob(
        export_id=1,
        site=site.name,
        group_id="g",
        kind="bulk",
        state="complete",
        attempt=1,
        resource_types=(_TYPE,),
        status_url=status_url,
        manifest=manifest.to_json(),
        progress=None,
        error=None,
        requested_at=now,
        next_poll_at=None,
        transaction_time=manifest.transaction_time,
        landed_at=None,
        published_at=None,
        deleted_at=None,
    )


def _table(found: Sequence[Measured], title: str) -> Table:
    table = Table(title=title)
    for name in ("workers", "gzip", "MB", "seconds", "MB/s", "largest resident set, MB", "of it before"):
        table.add_column(name, justify="right")
    for one in found:
        table.add_row(
            str(one.workers),
            "yes" if one.gzip else "no",
            f"{one.bytes / 1e6:,.0f}",
            f"{one.seconds:.2f}",
            f"{one.bytes / 1e6 / one.seconds:,.0f}",
            f"{one.rss_bytes / 1e6:.0f}",
            f"{one.started_bytes / 1e6:.0f}",
        )
    return table


if __name__ == "__main__":
    main()
