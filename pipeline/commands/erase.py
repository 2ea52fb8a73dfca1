"""`epic-omop erase`: words for people around `pipeline.erasure`. Counts only; no id of a patient is printed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import Column, CsvOption, JsonOption, Listing, print_listing, show
from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import DownloadColumn, Progress, Terminal, progress
from pipeline.commands.warehouse_state import refuse_empty
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.erasure.run import EraseProgress, Erasing
    from pipeline.warehouse.runtime import Runtime

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `erase` to the program."""
    app.command("erase")(erase)


def erase(
    site: Annotated[str | None, typer.Option("--site", help="The site from which the person's resources came.")] = None,
    patient: Annotated[
        list[str] | None,
        typer.Option(
            "--patient",
            help="FHIR id of the Patient; repeat for several. Others on this machine can see command lines: rather"
            " give --patient-file, or neither, and type it in.",
        ),
    ] = None,
    patient_file: Annotated[
        Path | None,
        typer.Option("--patient-file", help="File of FHIR ids: one a line, or CSV; - reads them from the input."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an erasure that was interrupted.")] = False,
    rewrite_tables: Annotated[
        bool,
        typer.Option(
            "--rewrite-tables", help="VACUUM FULL, so that the tables' files hold nothing either; locks them."
        ),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show who was erased: time, site and counts.")] = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Erase persons: all that is theirs in the database, landing, staging and dead letters. It cannot be undone.

    Shows what would go and asks. A tombstone (a salted hash of the id) is left: what later exports hold of the person is
    excluded and taken out of landing. Safe to stop: the same command, or --resume, finishes. Not reached:
    backups, the write-ahead log, the folders that `ingest --from` has read, files of your own with ids.

    Example: epic-omop erase --site north --patient-file ids.txt --dry-run
    """
    from pipeline.warehouse.runtime import Runtime

    console = Terminal(highlight=False)
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    if site is not None:
        known_site(runtime, site)
    if list_:
        _print_erasures(console, runtime, site, as_json=as_json, as_csv=as_csv)
        return
    if site is None:
        raise UsageError("Say from which site.", "Give --site NAME; `epic-omop status` lists them.")
    request = EraseRequest(
        site,
        [] if resume else _patients(patient, patient_file),
        dry_run=dry_run,
        yes=yes,
        rewrite_tables=rewrite_tables,
    )
    _search_and_erase(console, runtime, request)


@dataclass(frozen=True)
class EraseRequest:
    """What `epic-omop erase` was asked for. No patients: those of an erasure that was interrupted."""

    site: str
    patients: Sequence[str]
    dry_run: bool
    yes: bool
    rewrite_tables: bool


def _search_and_erase(console: Terminal, runtime: Runtime, request: EraseRequest) -> None:
    from pipeline.erasure.run import erasing

    bar, show = _progress(console)
    with bar, erasing(runtime, request.site, request.patients, show) as work:
        bar.stop()
        _print_found(console, work)
        if request.dry_run:
            console.print("Nothing was erased: this was a look.")
            return
        if not request.yes and not _confirmed():
            console.print("Nothing was erased.")
            raise typer.Exit(1)
        bar.start()
        warnings = work.run(rewrite_tables=request.rewrite_tables)
    for warning in warnings:
        console.print(warning, style="yellow")
    console.print("Erased; a second search found nothing of theirs. Later exports cannot bring it back.")
    if not request.rewrite_tables:
        console.print(
            "Deleted rows leave traces in free pages of the tables' files until these are used again:"
            " --rewrite-tables takes them out at once."
        )
    console.print("Backups and the write-ahead log of PostgreSQL are not reached. See docs/erasing.md.")


def _patients(ids: list[str] | None, file: Path | None) -> list[str]:
    from pipeline.extract.rest.patient_list import checked_patients, read_patients

    if ids and file:
        raise UsageError("--patient and --patient-file exclude each other.", "Give one of them.")
    if file is not None:
        return read_patients(Path("/dev/stdin") if str(file) == "-" else file)
    if not ids:
        if not sys.stdin.isatty():
            raise UsageError("Say whom to erase.", "Give --patient-file FILE (- for the input), or --patient ID.")
        ids = [typer.prompt("FHIR id of the Patient", hide_input=True)]
    return checked_patients(enumerate(ids, start=1), "--patient")


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("Erasing cannot be undone and nobody can be asked here.", "Give --yes, or --dry-run.")
    return typer.confirm("Erase all of this? It cannot be undone.")


def _progress(console: Terminal) -> tuple[Progress, EraseProgress]:
    bar = progress(console, DownloadColumn())
    task = bar.add_task("searching", total=None)

    def show(stage: str, done: int, total: int) -> None:
        bar.update(task, description=stage, completed=done, total=total or None)

    return bar, show


def _print_found(console: Terminal, work: Erasing) -> None:
    sites = sorted(set(work.patients.values()))
    columns = (Column("what", "what", "code"), Column("count", "would go", "count"))
    listing = Listing(f"Found in {', '.join(sites)}", columns)
    for name, count in sorted(work.counts.items(), key=lambda item: (":" in item[0], "." in item[0], item[0])):
        if count:
            listing.add(name, count)
    print_listing(console, listing)
    if len(work.patients) > 1:
        console.print(
            f"{len(work.patients)} Patient resources go, with those that are the same person (replaced-by links,"
            " the person crosswalk) or were left by an erasure that was interrupted.",
            style="bold",
        )


_ERASURE = (
    Column("site", "site", "code"),
    Column("erased_at", "erased", "time"),
    Column("patients", "patients", "count"),
    Column("rows", "rows", "count"),
    Column("lines", "lines", "count"),
    Column("state", "state"),
)


def _print_erasures(console: Terminal, runtime: Runtime, site: str | None, *, as_json: bool, as_csv: bool) -> None:
    from pipeline.warehouse.erased import erasures

    with runtime.connect() as connection:
        found = erasures(connection, site)
    listing = Listing("Erased", _ERASURE)
    for item in found:
        rows = sum(count for name, count in item.counts.items() if not name.startswith(("etl.", "landing: ")))
        state = "done" if item.finished_at else f"interrupted: epic-omop erase --site {item.site} --resume"
        lines = item.counts.get("landing: lines", 0)
        listing.add(item.site, item.erased_at, item.patients, rows, lines, state)
    if as_json or as_csv:
        show(console, listing, as_json=as_json, as_csv=as_csv)
        return
    if not found:
        console.print("Nobody was erased.")
        return
    print_listing(console, listing)
    console.print("An erasure cannot be undone. To load a person again is a matter of a new warehouse.")
