"""`epic-omop remap`: map a site again from landing, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.site_names import known_site
from pipeline.commands.tables import number_table
from pipeline.commands.terminal import BarColumn, MofNCompleteColumn, Progress, Terminal, TextColumn, TimeElapsedColumn
from pipeline.commands.warehouse_state import refuse_empty

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.load.remap import RemapReport

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("remap")(remap)


def remap(
    site: Annotated[str, typer.Option("--site", help="The site whose resources are mapped again.")],
    only_old: Annotated[
        bool, typer.Option("--only-old", help="Only what was mapped under other settings, mappings or software.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be mapped, and map nothing.")] = False,
) -> None:
    """Map everything of a site again from landed lines, after its settings or mappings changed. Asks nothing of the site.

    Safe to stop: run again, it continues. What came later is never overwritten. Exit code 74: some lines are in landing
    no more; the rest is mapped.
    """
    from pipeline.core.errors import LandingError
    from pipeline.load import remap as remapping
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = Terminal()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    settings = known_site(runtime, site)
    if dry_run:
        _print(console, remapping.remap_plan(runtime, settings, only_old=only_old), "Would be mapped again")
        return
    with _progress(console) as progress:
        task = progress.add_task("resources", total=None)
        report = remapping.remap(
            runtime,
            settings,
            only_old=only_old,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _print_report(console, report)
    if gone := report.not_in_landing.total():
        _print(console, report.not_in_landing, "Not in landing any more")
        raise LandingError(
            f"{gone:,} resources of site {site} stay under old settings: landing does not hold their lines any more.",
            "The next export that holds them maps them; until then `epic-omop status` counts them.",
        )


def _print_report(console: Terminal, report: RemapReport) -> None:
    if report.resumed:
        console.print("An interrupted remap was gone on with.")
    _print(console, report.mapped, "Mapped again")


def _print(console: Terminal, resources: Mapping[str, int], title: str) -> None:
    table = number_table("resource type", "resources", title=title)
    for resource_type, count in sorted(resources.items()):
        table.add_row(resource_type, f"{count:,}")
    table.add_section()
    table.add_row("all", f"{sum(resources.values()):,}")
    console.print(table)


def _progress(console: Terminal) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
