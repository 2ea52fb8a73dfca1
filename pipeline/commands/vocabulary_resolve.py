"""`epic-omop vocabulary resolve`: ask other services about unknown codes, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.tables import number_table
from pipeline.commands.terminal import BarColumn, MofNCompleteColumn, Progress, Terminal, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.load.resolving import ResolveProgress, ResolverReport

__all__ = ["RESOLVE_EXAMPLES", "resolve"]

RESOLVE_EXAMPLES = "Examples: epic-omop vocabulary resolve --dry-run · epic-omop vocabulary resolve --site north"


def resolve(
    site: Annotated[str | None, typer.Option("--site", help="Only this site; else all that have resolvers.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked, and send nothing.")] = False,
) -> None:
    """Ask the resolvers of sites.yaml about codes that neither the local map nor the vocabulary knows.

    Each code is asked once for each vocabulary release; only its system and code are sent. What is resolved maps with the
    next load; `epic-omop remap` maps what is loaded already. Nights do both. Exit code 75: some codes have no answer yet.
    """
    from pipeline.commands.warehouse_state import refuse_empty
    from pipeline.core.errors import RemoteUnavailable, UsageError
    from pipeline.load.resolving import resolve_codes
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = Terminal()
    sites = [runtime.settings.site(site)] if site is not None else list(runtime.settings.sites.values())
    sites = [one for one in sites if one.resolvers]
    if not sites:
        who = f"Site {site} has no" if site is not None else "No site has"
        raise UsageError(f"{who} resolvers.", "See docs/vocabulary.md, 'Other resolvers'.")
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    problems = []
    for one in sites:
        with _progress(console) as progress:
            show = _shown_on(progress, one.name)
            reports = resolve_codes(runtime, one, dry_run=dry_run, despite_pause=True, progress=show)
        _print(console, one.name, reports, dry_run=dry_run)
        problems += [f"{one.name}: {report.problem}" for report in reports if report.problem]
    if problems:
        raise RemoteUnavailable("\n".join(problems), "What was answered is kept; the rest is asked by the next run.")


def _print(console: Terminal, site: str, reports: Sequence[ResolverReport], *, dry_run: bool) -> None:
    if dry_run:
        table = number_table("resolver", "known", "to ask", title=f"Site {site}: codes")
        for report in reports:
            table.add_row(report.resolver, f"{report.known:,}", f"{report.due:,}")
        console.print(table)
        return
    names = ("exact", "not Standard", "suggestions", "unknown", "no answer")
    table = number_table("resolver", *names, title=f"Site {site}: codes")
    for report in reports:
        counts = (report.exact, report.not_standard, report.suggestions, report.unknown, report.unanswered)
        table.add_row(report.resolver, *(f"{count:,}" for count in counts))
    console.print(table)


def _shown_on(progress: Progress, site: str) -> ResolveProgress:
    task = progress.add_task(site, total=None)
    return lambda resolver, done, total: progress.update(
        task, description=f"{site}: {resolver}", completed=done, total=total
    )


def _progress(console: Terminal) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
