"""`epic-omop landing`: what landed exports take on the disk, and pruning them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import (
    Column,
    JsonOption,
    Listing,
    listing_as_json,
    print_json,
    print_listing,
    words_console,
)
from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Terminal
from pipeline.commands.warehouse_state import refuse_empty

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from pipeline.landing.usage import LandingUsage
    from pipeline.load.pruning import PrunedExport
    from pipeline.warehouse.runtime import Runtime

__all__ = ["app", "usage"]

app = typer.Typer(no_args_is_help=True, help="Landed exports: what they take on the disk, and pruning old ones.")


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show what landing holds, how fast it grows, and for how many days the disk suffices.

    Example: epic-omop landing status --json
    """
    from pipeline.load.landed_lines import missing_lines, missing_sentence
    from pipeline.load.pruning import prunable
    from pipeline.warehouse.export_jobs import sites_with_exports
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = words_console(as_document=as_json)
    sites = []
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        found = usage(runtime, connection)
        for name in sorted({*runtime.settings.sites, *sites_with_exports(connection)}):
            site = runtime.settings.site_or_folder(name)
            old = prunable(connection, site, runtime.clock.now())
            count = sum(runtime.landing.exists(name, number) for number in old)
            sites.append(_LandingOfSite(name, site.landing_keep, count, missing_lines(connection, name)))
    if as_json:
        print_json({**asdict(found), "days_left": found.days_left, "sites": [asdict(one) for one in sites]})
        return
    console.print(found.sentence())
    for one in sites:
        advice = " `epic-omop landing prune` leaves what is needed of them." if one.older_exports else ""
        console.print(
            f"Site {one.site} keeps {one.landing_keep}: {one.older_exports:,} older exports are in landing.{advice}"
        )
        if one.missing_lines:
            console.print(missing_sentence(one.missing_lines), style="yellow")


@dataclass(frozen=True)
class _LandingOfSite:
    """`older_exports`: those that `landing_keep` does not keep; `missing_lines`: resources whose lines are in landing no more."""

    site: str
    landing_keep: str
    older_exports: int
    missing_lines: int


@app.command()
def prune(
    site: Annotated[str | None, typer.Option("--site", help="Only this site; otherwise all.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove exports that `landing_keep` of their site does not keep, but for the lines that are needed. Exports that were
    forgotten, given up or failed are kept as long as others of their age.

    Needed are the lines of all current resources, of open dead letters, and of what waits for something else: they are copied
    into files of their own, so that whatever is mapped again finds them. Safe to stop: run again, it continues.

    Example: epic-omop landing prune --site north --dry-run
    """
    from pipeline.load.pruning import prune as prune_site
    from pipeline.warehouse.export_jobs import sites_with_exports
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = words_console(as_document=as_json)
    documents = []
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        names = sorted({*runtime.settings.sites, *sites_with_exports(connection)})
    if site is not None:
        names = [known_site(runtime, site).name]
    for name in names:
        settings = runtime.settings.site_or_folder(name)
        with console.status(f"pruning {name}"):
            found = prune_site(runtime, settings, dry_run=dry_run)
        if as_json:
            exports = listing_as_json(Listing("", _PRUNED, [_row(export) for export in found]))
            documents.append({"site": name, "landing_keep": settings.landing_keep, "exports": exports})
        else:
            _print_pruned(console, name, settings.landing_keep, found, dry_run=dry_run)
    if as_json:
        print_json(documents)


def usage(runtime: Runtime, connection: psycopg.Connection) -> LandingUsage:
    """What landing takes of the disk, over all sites."""
    from pipeline.landing.usage import landing_usage

    rows = connection.execute(
        "SELECT site, export_id, landed_at FROM export_job WHERE landed_at IS NOT NULL"
    ).fetchall()
    return landing_usage(runtime.landing, {(site, number): at for site, number, at in rows}, runtime.clock.now())


_PRUNED = (
    Column("export", "export", "number"),
    Column("files", "files", "count"),
    Column("lines_moved", "lines moved", "count"),
    Column("bytes_before", "bytes before", "count"),
    Column("bytes_after", "bytes after", "count"),
    Column("result", "result"),
    Column("reason", "why", "code"),
)


def _row(export: PrunedExport) -> tuple[int | str | None, ...]:
    result = export.problem or ("removed" if export.is_removed else "needed lines stay")
    counts = (export.files_removed, export.lines_moved, export.bytes_before, export.bytes_after)
    return export.export_id, *counts, result, export.reason


def _print_pruned(console: Terminal, site: str, keep: str, found: Sequence[PrunedExport], *, dry_run: bool) -> None:
    if not found:
        console.print(f"Site {site} keeps {keep}: nothing is to be removed.")
        return
    print_listing(console, Listing(f"Site {site}, keeps {keep}", _PRUNED, [_row(export) for export in found]))
    if dry_run:
        console.print("Nothing was removed: this was a look.")
