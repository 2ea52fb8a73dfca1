"""`epic-omop crawl`: words for people around `pipeline.extract.rest.crawl`. Counts only; no id of a patient is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.ingest import load_exports
from pipeline.commands.output import Column, JsonOption, print_json, print_listing, words_console
from pipeline.commands.rest_progress import rest_progress
from pipeline.commands.tables import counts_listing, load_report_as_json, print_load_report
from pipeline.commands.terminal import Terminal, bold, words
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from pipeline.core.settings import SiteSettings
    from pipeline.extract.rest.crawl import Crawl
    from pipeline.warehouse.runtime import Runtime

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `crawl` to the program."""
    app.command("crawl")(crawl)


def crawl(
    site: Annotated[str, typer.Argument(help="Name of a site in sites.yaml.")],
    patients: Annotated[
        Path | None,
        typer.Option("--patients", help="File of FHIR ids of patients: one a line, or CSV. Default: `patients_file`."),
    ] = None,
    patient: Annotated[
        list[str] | None, typer.Option("--patient", help="FHIR id of a patient; repeat for several.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish, and load, the crawls that were begun, whatever their lists.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Everything, also where the site knows what changed since the last crawl.")
    ] = False,
    accept_failed: Annotated[
        bool, typer.Option("--accept-failed", help="Land although searches fail again and again; they are named.")
    ] = False,
    load: Annotated[bool, typer.Option("--load/--no-load", help="Also load what was found.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Search for the resources of listed patients, one by one, for sites without bulk export; land and load them.

    Safe to stop: the same command continues where it was. Requests keep to `requests_per_second` in sites.yaml;
    what each type is searched by is `crawl_searches`. Exit code 75: some searches failed for now, call again.

    Example: epic-omop crawl north --patients patients.csv
    """
    from pipeline.extract.rest.crawl import crawl as crawl_patients
    from pipeline.load.load import LoadOptions
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    settings = runtime.settings.site(site)
    console = words_console(as_document=as_json)
    documents = []
    for label, ids in _lists(runtime, settings, patients, patient, resume=resume):
        with rest_progress(console, "patients") as show:
            result = crawl_patients(
                runtime, settings, ids, full=full, accept_failed=accept_failed, label=label, progress=show
            )
        documents.append(_crawl_as_json(result))
        _print_crawl(console, result)
        if load:
            report = load_exports(console, runtime, settings, [result.export], LoadOptions(hydrate=True))
            documents[-1]["load"] = load_report_as_json(report)
            print_load_report(console, report)
        else:
            number = result.export.export_id
            console.print(words("Load it with ", bold(f"epic-omop ingest --site {site} --export {number}"), "."))
    if as_json:
        print_json(documents)


def _crawl_as_json(result: Crawl) -> dict[str, Any]:
    return {
        "export": result.export.export_id,
        "patients": result.patients,
        "missing_patients": result.missing_patients,
        "resources": dict(sorted(result.resources.items())),
        "refused": [
            {"resource_type": resource_type, "answer": code, "patients": count}
            for (resource_type, code), count in sorted(result.refused.items())
        ],
    }


def _lists(
    runtime: Runtime, site: SiteSettings, file: Path | None, ids: list[str] | None, *, resume: bool
) -> Iterator[tuple[str | None, list[str]]]:
    """The lists of patients to crawl: one, or with `resume` those of crawls that are not loaded, with their labels."""
    from pipeline.extract.rest.crawl import unfinished_crawls
    from pipeline.extract.rest.patient_list import checked_patients, read_patients

    if sum((file is not None, bool(ids), resume)) > 1:
        raise UsageError("--patients, --patient and --resume exclude each other.", "Give one of them.")
    if resume:
        lists = unfinished_crawls(runtime, site, landed=True)
        if not lists:
            raise UsageError(f"Site {site.name} has no unfinished crawl.", "Begin one with --patients FILE.")
        yield from lists.items()
    elif ids:
        yield None, checked_patients(enumerate(ids, start=1), "--patient")
    else:
        listed = file or site.patients_file
        if listed is None:
            raise UsageError(
                "Say which patients to crawl.", "Give --patients FILE, or name a patients_file in sites.yaml."
            )
        yield None, read_patients(listed)


def _print_crawl(console: Terminal, result: Crawl) -> None:
    title = f"Crawl {result.export.export_id}: {result.patients:,} patients"
    print_listing(console, counts_listing(title, Column("resource_type", "resource type", "code"), result.resources))
    if result.missing_patients:
        console.print(f"{result.missing_patients:,} patients are not there, or not shown to this client.")
    for (resource_type, code), count in sorted(result.refused.items()):
        console.print(f"{resource_type}: not whole for {count:,} patients; the server answered {code}.", style="yellow")
    if result.export.outcomes:
        console.print(f"The server's own texts are in {result.export.folder / 'outcomes'}.", soft_wrap=True)
