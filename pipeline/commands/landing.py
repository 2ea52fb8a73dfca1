"""`epic-omop landing`: what landed exports take on the disk, and pruning them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.site_names import known_site
from pipeline.commands.tables import number_table
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
def status() -> None:
    """Show what landing holds, how fast it grows, and for how many days the disk suffices."""
    from pipeline.load.landed_lines import missing_lines, missing_sentence
    from pipeline.load.pruning import prunable
    from pipeline.warehouse.export_jobs import sites_with_exports
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = Terminal(highlight=False)
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        console.print(usage(runtime, connection).sentence(), soft_wrap=True)
        for name in sorted({*runtime.settings.sites, *sites_with_exports(connection)}):
            site = runtime.settings.site_or_folder(name)
            old = [
                number
                for number in prunable(connection, site, runtime.clock.now())
                if runtime.landing.exists(name, number)
            ]
            console.print(
                f"Site {name} keeps {site.landing_keep}: {len(old):,} older exports are in landing."
                + (" `epic-omop landing prune` leaves what is needed of them." if old else ""),
                soft_wrap=True,
            )
            if missing := missing_lines(connection, name):
                console.print(missing_sentence(missing), style="yellow", soft_wrap=True)


@app.command()
def prune(
    site: Annotated[str | None, typer.Option("--site", help="Only this site; otherwise all.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
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
    console = Terminal(highlight=False)
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        names = sorted({*runtime.settings.sites, *sites_with_exports(connection)})
    if site is not None:
        names = [known_site(runtime, site).name]
    for name in names:
        settings = runtime.settings.site_or_folder(name)
        with console.status(f"pruning {name}"):
            found = prune_site(runtime, settings, dry_run=dry_run)
        _print_pruned(console, name, settings.landing_keep, found, dry_run=dry_run)


def usage(runtime: Runtime, connection: psycopg.Connection) -> LandingUsage:
    """What landing takes of the disk, over all sites."""
    from pipeline.landing.usage import landing_usage

    rows = connection.execute(
        "SELECT site, export_id, landed_at FROM export_job WHERE landed_at IS NOT NULL"
    ).fetchall()
    return landing_usage(runtime.landing, {(site, number): at for site, number, at in rows}, runtime.clock.now())


def _print_pruned(console: Terminal, site: str, keep: str, found: Sequence[PrunedExport], *, dry_run: bool) -> None:
    if not found:
        console.print(f"Site {site} keeps {keep}: nothing is to be removed.")
        return
    table = number_table(
        "export", "files", "lines moved", "bytes before", "bytes after", "", "why", title=f"Site {site}, keeps {keep}"
    )
    for export in found:
        after = "·" if export.bytes_after is None else f"{export.bytes_after:,}"
        note = export.problem or ("removed" if export.is_removed else "needed lines stay")
        table.add_row(
            str(export.export_id),
            f"{export.files_removed:,}",
            f"{export.lines_moved:,}",
            f"{export.bytes_before:,}",
            after,
            note,
            export.reason,
        )
    console.print(table)
    if dry_run:
        console.print("Nothing was removed: this was a look.")
