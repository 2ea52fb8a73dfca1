"""The command `python -m benchmarks`: options, the folder, and where results go."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import orjson
from rich.console import Console

from benchmarks.exports import patients_of
from benchmarks.measure import PARTS, Options, measure
from benchmarks.report import as_json, print_report

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate, load, measure, print; a warehouse of its own is made and removed."""
    given = _parser().parse_args(arguments)
    console = Console(width=max(Console().width, 150))  # the table's columns, also into a file
    folder = Path(tempfile.mkdtemp(prefix="epic-omop-benchmark-", dir=given.folder))
    patients = patients_of(given.resources) if given.resources else given.patients
    options = Options(patients, given.workers, given.repeat, folder, given.parts)
    try:
        with console.status("starting") as status:
            found = measure(options, status.update)
        print_report(console, options, found)
        if given.json:
            given.json.write_bytes(
                orjson.dumps(as_json(options, found), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
            )
    finally:
        if given.keep:
            console.print(f"Kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Load synthetic patients and compare with the floor: parsing alone, and COPY of the same rows.",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--patients", type=_positive, default=2000, help="number of synthetic patients (%(default)s)")
    size.add_argument("--resources", type=_positive, help="about as many resources instead; 49 a patient")
    parser.add_argument("--workers", type=_positive, default=2, help="processes of the transform stage (%(default)s)")
    parser.add_argument(
        "--repeat", type=_positive, default=2, help="repetitions, of which the best counts (%(default)s)"
    )
    parser.add_argument(
        "--parts",
        type=_parts,
        default=PARTS,
        metavar="NAME,…",
        help=f"what to measure beside the first load, of {','.join(PARTS)} (all); none: the first load alone",
    )
    parser.add_argument("--folder", type=Path, help="where to work (the system's folder for temporary files)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--keep", action="store_true", help="keep the generated files and landing")
    return parser


def _parts(text: str) -> tuple[str, ...]:
    names = [] if text == "none" else text.split(",")
    unknown = set(names) - set(PARTS)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return tuple(name for name in PARTS if name in names)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
