"""`epic-omop remap`: map again from landing what settings or the vocabulary have changed, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.output import Column, JsonOption, Listing, print_json, print_listing, words_console
from pipeline.commands.site_names import known_site
from pipeline.commands.tables import counts_listing
from pipeline.commands.terminal import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Terminal,
    TextColumn,
    TimeElapsedColumn,
)
from pipeline.commands.warehouse_state import refuse_empty

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.core.settings import SiteSettings
    from pipeline.load.remap import RemapPlan, RemapReport
    from pipeline.load.vocabulary_changes import AnswerChange, VocabularyChanges
    from pipeline.warehouse.runtime import Runtime

__all__ = ["register"]

#: Changed codes that are shown; --json has all.
_MOST_SHOWN = 20


def register(app: typer.Typer) -> None:
    app.command("remap")(remap)


def remap(
    site: Annotated[
        str | None, typer.Option("--site", help="The site whose resources are mapped again; left out: all sites.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything of the site, also what nothing has changed for.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change (codes, resources, rows), and map nothing.")
    ] = False,
    _only_old: Annotated[
        bool, typer.Option("--only-old", hidden=True, help="The default now; kept for scripts of earlier versions.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Map again, from landed lines, what settings, mappings, the vocabulary or a local map have changed. Asks nothing of the
    site.

    Example: `epic-omop remap --dry-run`, then `epic-omop remap`.

    Safe to stop: run again, it continues. What came later is never overwritten. Exit code 74: some lines are in landing
    no more; the rest is mapped.
    """
    from pipeline.load import remap as remapping
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = words_console(as_document=as_json)
    documents = []
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    missing: dict[str, int] = {}
    for settings in _sites(runtime, site):
        if dry_run:
            plan = remapping.remap_plan(runtime, settings, everything=everything)
            documents.append(_plan_as_json(settings.name, plan))
            _print_plan(console, settings.name, plan)
            continue
        with _progress(console) as progress:
            show = _shown_on(progress, f"{settings.name}: resources")
            report = remapping.remap(runtime, settings, everything=everything, progress=show)
        documents.append(_report_as_json(settings.name, report))
        _print_report(console, settings.name, report)
        if gone := report.not_in_landing.total():
            _print_counts(console, report.not_in_landing, "resource type", "resources", "Not in landing any more:")
            missing[settings.name] = gone
    if as_json:
        print_json(documents)
    _refuse_missing(missing)


def _plan_as_json(site: str, plan: RemapPlan) -> dict[str, Any]:
    return {
        "site": site,
        "dry_run": True,
        "resources": dict(plan.resources),
        "rows": dict(plan.rows),
        "derived_rows": plan.others_are_old,
        "vocabulary": _changes_as_json(plan.vocabulary),
    }


def _report_as_json(site: str, report: RemapReport) -> dict[str, Any]:
    return {
        "site": site,
        "dry_run": False,
        "exports": report.export_ids,
        "mapped": dict(report.mapped),
        "not_in_landing": dict(report.not_in_landing),
        "resumed": report.resumed,
        "vocabulary": _changes_as_json(report.vocabulary),
    }


def _changes_as_json(found: VocabularyChanges | None) -> dict[str, Any] | None:
    if found is None:
        return None
    changes = [dict(zip(("code", "before", "after"), _change(change), strict=True)) for change in found.changes]
    return {"before": found.before, "after": found.after, "resources": found.resources, "changes": changes}


def _sites(runtime: Runtime, site: str | None) -> list[SiteSettings]:
    """The one that is named, or all of which something is loaded."""
    if site is not None:
        return [known_site(runtime, site)]
    with runtime.connect() as connection:
        rows = connection.execute("SELECT DISTINCT site FROM site_resource_type ORDER BY site").fetchall()
    return [runtime.settings.site_or_folder(name) for (name,) in rows]


def _refuse_missing(missing: Mapping[str, int]) -> None:
    from pipeline.core.errors import LandingError

    if missing:
        counts = ", ".join(f"{count:,} resources of site {site}" for site, count in missing.items())
        raise LandingError(
            f"{counts} stay as they were: landing does not hold their lines any more.",
            "The next export that holds them maps them; until then `epic-omop status` counts them.",
        )


def _print_plan(console: Terminal, site: str, plan: RemapPlan) -> None:
    _print_changes(console, site, plan.vocabulary)
    if plan.is_empty:
        console.print(f"Site {site}: nothing would be mapped again.")
        return
    if plan.resources:
        _print_counts(console, plan.resources, "resource type", "resources", f"Site {site}: would be mapped again:")
        _print_counts(console, plan.rows, "table", "rows", f"Site {site}: rows that these have now:")
    if plan.others_are_old:
        console.print(f"Site {site}: eras, observation periods and cdm_source would be computed again.")


def _print_report(console: Terminal, site: str, report: RemapReport) -> None:
    _print_changes(console, site, report.vocabulary)
    if report.resumed:
        console.print("An interrupted remap was continued.")
    if report.mapped:
        _print_counts(console, report.mapped, "resource type", "resources", f"Site {site}: mapped again:")
    elif not report.not_in_landing:
        others = " Eras, observation periods and cdm_source were computed again." if report.export_ids else ""
        console.print(f"Site {site}: nothing was to be mapped again.{others}")


def _print_changes(console: Terminal, site: str, found: VocabularyChanges | None) -> None:
    if found is None:
        return
    console.print(f"Site {site}: vocabulary {found.before} → {found.after}.")
    console.print(
        f"Site {site}: code sets in use with another answer: {len(found.changes):,}; resources that hold them:"
        f" {found.resources:,}."
    )
    if not found.changes:
        return
    columns = (Column("code", "code", "code"), Column("before", "before", "code"), Column("after", "after", "code"))
    print_listing(console, Listing("", columns, [_change(change) for change in found.changes[:_MOST_SHOWN]]))
    if len(found.changes) > _MOST_SHOWN:
        console.print(f"and {len(found.changes) - _MOST_SHOWN:,} more.")


def _change(change: AnswerChange) -> tuple[list[str], list[str], list[str]]:
    """A code set (its codes with the ends of their systems, or its text), and its concept ids before and after."""
    from pipeline.transform.concepts.answers import codings_of, text_of

    text = text_of(change.asked)
    codes = [f"{(system or '').rstrip('/').rsplit('/')[-1]}|{code}" for system, code, _ in codings_of(change.asked)]
    before, after = (targets.split("|") if targets else ["none"] for targets in (change.before, change.after))
    return codes if text is None else [f'"{text}"'], before, after


def _print_counts(console: Terminal, counts: Mapping[str, int], of: str, what: str, title: str) -> None:
    print_listing(console, counts_listing(title, Column(of.replace(" ", "_"), of, "code"), counts, what=what))


def _shown_on(progress: Progress, what: str) -> Callable[[int, int], None]:
    task = progress.add_task(what, total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


def _progress(console: Terminal) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
