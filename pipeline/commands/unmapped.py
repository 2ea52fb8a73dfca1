"""`epic-omop unmapped`: codes without a concept, out to whoever maps them and back."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import (
    Column,
    CsvOption,
    JsonOption,
    Listing,
    print_csv,
    print_json,
    print_listing,
    refuse_both,
)
from pipeline.commands.site_names import known_site, known_sites
from pipeline.commands.suggesting import open_suggestions
from pipeline.commands.terminal import Terminal, document, echo, progress
from pipeline.commands.warehouse_state import refuse_empty
from pipeline.core.errors import UsageError, VocabularyError

if TYPE_CHECKING:
    from pipeline.quality.unmapped.codes import UnmappedSource
    from pipeline.quality.unmapped.domains import ElementDomains
    from pipeline.quality.unmapped.exporting import ExportFormat
    from pipeline.quality.unmapped.importing import ImportReport
    from pipeline.quality.unmapped.progress import SiteProgress
    from pipeline.transform.mapping.mappings import Mappings
    from pipeline.warehouse.local_map.rows import MapSchemas
    from pipeline.warehouse.runtime import Runtime

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Codes that no concept was found for: export them for review, import what was decided, see how far it is.\n\n"
    "What is imported maps with the next run of each site; `epic-omop remap` maps what is loaded already.",
)

_FORMATS = ("usagi", "plain")
_MOST_SHOWN = 20


@app.command("export")
def export_(
    site: Annotated[str | None, typer.Option("--site", help="Only this site.")] = None,
    style: Annotated[
        str, typer.Option("--format", help="usagi: for its Import codes; plain: with columns to fill in.")
    ] = "usagi",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; without it, the terminal.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The most frequent so many codes.")] = None,
    suggestions: Annotated[
        bool, typer.Option(help="Concepts that may be meant, from the names of the loaded vocabulary.")
    ] = True,
) -> None:
    """Write the codes that nobody has decided about as CSV, the most frequent first.

    Example: epic-omop unmapped export --site north --output unmapped.csv
    """
    from pipeline.quality.unmapped.codes import Decisions, SourceKeys, unmapped_sources
    from pipeline.quality.unmapped.domains import ElementDomains
    from pipeline.warehouse.local_map.rows import current_rows

    chosen = _format(style)
    runtime = _runtime(site)
    mappings = _mappings(runtime, site)
    _look(runtime, site, "unmapped codes")
    with runtime.connect() as connection:
        answers = [row.answer for row in current_rows(connection, _schemas(runtime))]
        found = unmapped_sources(connection, site)
    decisions = Decisions.of(SourceKeys(mappings), answers)
    sources = [source for source in found if decisions.state_of(source) in ("open", "invalid target")]
    hidden = sum(not source.has_name for source in found)
    content = _with_suggestions(runtime, sources[:limit], chosen, ElementDomains(mappings), suggestions=suggestions)
    if output is None:
        document(content)
    else:
        _write(output, content)
    rows = sum(source.rows for source in sources[:limit])
    echo(f"{len(sources[:limit]):,} codes of {rows:,} rows{f' in {output}' if output else ''}.", err=True)
    if hidden:
        echo(
            "Texts of types that the site's text_source_value_types does not name, and elements without code and text,"
            " are not in it.",
            err=True,
        )


def _with_suggestions(
    runtime: Runtime,
    sources: list[UnmappedSource],
    style: ExportFormat,
    domains: ElementDomains,
    *,
    suggestions: bool,
) -> str:
    """The file; its columns of suggestions are empty where nobody wants them, or they cannot be had."""
    from pipeline.quality.unmapped.exporting import as_csv

    if not suggestions or not sources:
        return as_csv(sources, style, domains)
    try:
        with open_suggestions(runtime) as suggest, progress(Terminal(stderr=True)) as bar:
            return as_csv(bar.track(sources, description="Suggestions"), style, domains, suggest)
    except VocabularyError as error:
        echo(f"Without suggestions: {error}", err=True)
        return as_csv(sources, style, domains)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What Usagi saved, a source_to_concept_map, or the plain table.")],
    site: Annotated[str | None, typer.Option("--site", help="For this site, whatever the file says.")] = None,
    all_sites: Annotated[bool, typer.Option("--all-sites", help="For every site, whatever the file says.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="The code system, where the file names none.")] = None,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="Who approved, where the file names nobody.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take it in place of what is approved now.")] = False,
    unseen: Annotated[bool, typer.Option("--unseen", help="Take codes that no resource has had yet.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be taken, and change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take decisions about codes into the local map. Ends with 1 where lines are refused; the others are taken.

    Example: epic-omop unmapped import usagi-saved.csv --site north
    """
    from pipeline.quality.unmapped.files import read_map_file
    from pipeline.quality.unmapped.importing import ImportOptions, import_map

    if site is not None and all_sites:
        raise UsageError("--site and --all-sites contradict each other.", "Give one of them.")
    runtime = _runtime(site)
    content = read_map_file(file)
    options = ImportOptions(
        site, all_sites, system, reviewer, replace, unseen, dry_run, file.name, known_sites(runtime)
    )
    with runtime.connect() as connection:
        report = import_map(connection, content, options, _mappings(runtime, site), _schemas(runtime))
    if as_json:
        print_json(asdict(report) | {"taken": dict(report.taken), "dry_run": dry_run})
    else:
        _print_import(Terminal(highlight=False), report, dry_run)
    if report.refusals:
        raise typer.Exit(1)


@app.command()
def status(
    site: Annotated[str | None, typer.Option("--site", help="Only this site.")] = None,
    nights: Annotated[int, typer.Option(min=1, help="The last so many nights of the trend.")] = 7,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """How many codes are open, approved, without a map, or have lost their target; rows covered; the trend by night.

    As CSV: codes and rows by state.

    Example: epic-omop unmapped status --site north
    """
    from pipeline.quality.unmapped.progress import site_progress

    refuse_both(as_json=as_json, as_csv=as_csv)
    runtime = _runtime(site)
    with runtime.connect() as connection:
        found = site_progress(connection, _schemas(runtime), _mappings(runtime, site), site, nights)
    if as_json:
        print_json([item.as_json() for item in found])
        return
    if as_csv:
        rows = [(item.site, count.name, count.sources, count.rows) for item in found for count in item.counts]
        print_csv(Listing("", (Column("site", "site", "code"), *_STATES), rows))
        return
    console = Terminal(highlight=False)
    if not found:
        console.print("Nothing is loaded yet.")
    for item in found:
        _print_progress(console, item)


def _runtime(site: str | None) -> Runtime:
    from pipeline.warehouse.runtime import Runtime
    from pipeline.warehouse.schema import ensure_schemas, schema_names

    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    if site is not None:
        known_site(runtime, site)
    ensure_schemas(runtime.url, **schema_names(runtime.settings))
    return runtime


def _mappings(runtime: Runtime, site: str | None) -> Mappings:
    from pipeline.transform.mapping.mappings import load_mappings

    settings = runtime.settings
    if site is None:
        return load_mappings(settings.mappings)
    found = known_site(runtime, site)
    return load_mappings(settings.mappings, found.name, found.mapping, settings.site_mappings_folder)


def _schemas(runtime: Runtime) -> MapSchemas:
    from pipeline.warehouse.local_map.rows import MapSchemas

    return MapSchemas(runtime.settings.vocab_schema, runtime.settings.etl_schema)


def _look(runtime: Runtime, site: str | None, detail: str) -> None:
    from pipeline.warehouse.access_looks import EVERY_SITE, record_look

    record_look(runtime, "report", site=site or EVERY_SITE, detail=detail)


def _format(given: str) -> ExportFormat:
    if given == "usagi":
        return "usagi"
    if given == "plain":
        return "plain"
    raise UsageError(f"There is no format {given!r}.", f"Give one of {', '.join(_FORMATS)}.")


def _write(output: Path, content: str) -> None:
    from pipeline.core.files import disk_errors

    with disk_errors("The list of codes", output.parent, "The warehouse is as it was."):
        output.write_text(content, encoding="utf-8")


def _print_import(console: Terminal, report: ImportReport, dry_run: bool) -> None:
    if report.refusals:
        columns = (
            Column("line", "line", "number"),
            Column("code", "code", "code"),
            Column("reason", "refused, because"),
        )
        shown = [(refusal.line, refusal.code, refusal.reason) for refusal in report.refusals[:_MOST_SHOWN]]
        print_listing(console, Listing("", columns, shown))
        if len(report.refusals) > _MOST_SHOWN:
            console.print(f"… and {len(report.refusals) - _MOST_SHOWN:,} other lines.")
    taken = ", ".join(f"{count:,} {name}" for name, count in sorted(report.taken.items())) or "none"
    console.print(f"{'Would be taken' if dry_run else 'Taken'}: {taken}.")
    said = {
        "codes as before": report.unchanged,
        "lines that decide nothing": report.empty,
        "lines refused": len(report.refusals),
    }
    if others := ", ".join(f"{count:,} {name}" for name, count in said.items() if count):
        console.print(f"Others: {others}.")
    for note in report.notes:
        console.print(note)
    if report.taken and not dry_run:
        console.print("Next: `epic-omop remap` maps what is loaded; a site's next run maps by them anyway.")
    sys.stdout.flush()


_STATES = (Column("state", "codes"), Column("codes", "codes", "count"), Column("rows", "rows", "count"))
_NIGHT = (
    Column("day", "night", "time"),
    Column("rows", "coded rows loaded", "count"),
    Column("mapped", "with a concept", "count"),
    Column("share", "share", "share"),
)


def _print_progress(console: Terminal, item: SiteProgress) -> None:
    counts = [(count.name, count.sources, count.rows) for count in item.counts]
    print_listing(console, Listing(f"Codes without a concept: {item.site}", _STATES, counts))
    if item.rows:
        share = f"{100 * item.covered / item.rows:.1f} %"
        console.print(f"{item.covered:,} of {item.rows:,} coded rows are covered ({share}).")
    if item.nights:
        trend = Listing("By night", _NIGHT)
        for night in item.nights:
            trend.add(night.day, night.rows, night.mapped, night.mapped / night.rows if night.rows else None)
        print_listing(console, trend)
    for sentence in item.invalid:
        console.print(sentence)
