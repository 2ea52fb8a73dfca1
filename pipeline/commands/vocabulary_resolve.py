"""`epic-omop vocabulary resolve`: ask other services about unknown codes, for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import Column, JsonOption, Listing, print_json, print_listing, words_console
from pipeline.commands.terminal import BarColumn, MofNCompleteColumn, Progress, Terminal, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.load.resolving import ResolveProgress, ResolverReport

__all__ = ["RESOLVE_EXAMPLES", "resolve"]

RESOLVE_EXAMPLES = "Examples: epic-omop vocabulary resolve --dry-run · epic-omop vocabulary resolve --site north"


def resolve(
    site: Annotated[str | None, typer.Option("--site", help="Only this site; else all that have resolvers.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked, and send nothing.")] = False,
    as_json: JsonOption = False,
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
    console = words_console(as_document=as_json)
    documents = []
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
        documents.append({"site": one.name, "dry_run": dry_run, "resolvers": [asdict(report) for report in reports]})
        problems += [f"{one.name}: {report.problem}" for report in reports if report.problem]
    if as_json:
        print_json(documents)
    if problems:
        raise RemoteUnavailable("\n".join(problems), "What was answered is kept; the rest is asked by the next run.")


def _print(console: Terminal, site: str, reports: Sequence[ResolverReport], *, dry_run: bool) -> None:
    if dry_run:
        columns = (_RESOLVER, Column("known", "known", "count"), Column("due", "to ask", "count"))
        rows = [(report.resolver, report.known, report.due) for report in reports]
        print_listing(console, Listing(f"Site {site}: codes", columns, rows))
        return
    counts = (_RESOLVER, *(Column(key, label, "count") for key, label in _COUNTS.items()))
    answers = [(report.resolver, *(getattr(report, key) for key in _COUNTS)) for report in reports]
    print_listing(console, Listing(f"Site {site}: codes", counts, answers))


_RESOLVER = Column("resolver", "resolver", "code")
_COUNTS = {
    "exact": "exact",
    "not_standard": "not Standard",
    "suggestions": "suggestions",
    "unknown": "unknown",
    "unanswered": "no answer",
}


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
