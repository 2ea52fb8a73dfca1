"""`epic-omop retention`: what is kept for how long, and the run that removes the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import (
    Column,
    CsvOption,
    JsonOption,
    Listing,
    print_json,
    print_listing,
    refuse_both,
    show,
)
from pipeline.commands.terminal import Terminal
from pipeline.commands.warehouse_state import refuse_empty
from pipeline.core.errors import PermanentError

if TYPE_CHECKING:
    from pipeline.operations.retention.items import ItemReport

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="What grows with time: what is kept for how long, and what goes (docs/retention.md).\n\n"
    "The settings are the section `retention:` of operations.yaml; Dagster's job `retention` does it each day.",
)


@app.command()
def settings(as_json: JsonOption = False, as_csv: CsvOption = False) -> None:
    """Show the settings of retention, with their defaults.

    Example: epic-omop retention settings
    """
    from pipeline.core.operations_settings import load_operations
    from pipeline.core.settings import load_settings

    retention = load_operations(load_settings()).retention
    columns = [
        Column("setting", "setting", "code"),
        Column("value", "value", "code"),
        Column("default", "default", "code"),
        Column("what", "what"),
    ]
    listing = Listing("Retention", columns)
    for name, field in type(retention).model_fields.items():
        listing.add(name, getattr(retention, name), str(field.default), field.description or "")
    show(Terminal(highlight=False), listing, as_json=as_json, as_csv=as_csv)


@app.command()
def run(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would go, and why what stays is kept.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this item, such as dagster_runs; repeat for several.")
    ] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Remove what is older than its setting and not needed any more: of landing, staging, Dagster, `etl`, the lakehouse.

    Whatever accounts, verify, a replay or a remap needs stays, and the access log always. Safe to stop: run it again.
    Exit code 0: done; 1: an item failed, the others are done; 75: another run is at work.

    Example: epic-omop retention run --dry-run
    """
    from pipeline.operations.retention.run import ITEMS, run_retention
    from pipeline.orchestration.dagster_retention import dagster_items
    from pipeline.warehouse.runtime import Runtime

    refuse_both(as_json=as_json, as_csv=as_csv)
    console = Terminal(highlight=False)
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    items = (*ITEMS, *dagster_items())
    with Terminal(stderr=True).status("retention") as status:
        found = run_retention(runtime, items, is_dry=dry_run, only=only or (), progress=status.update)
        reports = list(found)
    if as_json:
        print_json([_as_json(report) for report in reports])
    elif as_csv:
        show(console, _removed(reports, is_dry=dry_run), as_csv=True)
    else:
        print_listing(console, _removed(reports, is_dry=dry_run))
        print_listing(console, _kept(reports))
    failed = [report for report in reports if report.problem]
    if failed:
        raise PermanentError(
            f"Retention of {', '.join(report.name for report in failed)} failed: {failed[0].problem}",
            "The other items are done. See to that, then run it again.",
        )


def _removed(reports: list[ItemReport], *, is_dry: bool) -> Listing:
    columns = [
        Column("item", "item", "code"),
        Column("setting", "keeps"),
        Column("removed", "would go" if is_dry else "removed", "count"),
        Column("what", "what"),
        Column("bytes", "on disk", "size"),
        Column("problem", "problem"),
    ]
    listing = Listing("What would go" if is_dry else "What went", columns)
    for one in reports:
        listing.add(one.name, one.setting, one.removed, one.what, one.bytes, one.problem)
    return listing


def _kept(reports: list[ItemReport]) -> Listing:
    columns = [Column("item", "item", "code"), Column("kept", "kept", "count"), Column("why", "why")]
    listing = Listing("What stays, and why", columns)
    for one in reports:
        for kept in one.kept:
            listing.add(one.name, kept.count, kept.why)
    return listing


def _as_json(report: ItemReport) -> dict[str, object]:
    return {
        "item": report.name,
        "setting": report.setting,
        "removed": report.removed,
        "what": report.what,
        "bytes": report.bytes,
        "problem": report.problem or None,
        "kept": [{"count": kept.count, "why": kept.why} for kept in report.kept],
    }
