"""`epic-omop verify --deep`, for people: how far it is, what was compared, and where the warehouse differs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.commands.output import Column, Listing, print_listing
from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Terminal, Text, styled, words
from pipeline.core.errors import AccountingError, UsageError

if TYPE_CHECKING:
    from pipeline.quality.deep.model import DeepReport, DeepRequest
    from pipeline.warehouse.runtime import Runtime

__all__ = ["deep_as_json", "deep_request", "refuse_differences", "run_deep"]

_PERSONS = 50
_MOST_SHOWN = 50


def deep_request(
    runtime: Runtime, *, persons: int | None, everything: bool, site: str | None, seed: int | None
) -> DeepRequest:
    """What the options ask for. Without a seed, each day chooses other persons. Raises UsageError."""
    from pipeline.quality.deep.model import DeepRequest

    if site is not None:
        known_site(runtime, site)
    if everything and persons is not None:
        raise UsageError("--all and --persons do not go together.", "Give one of them.")
    if seed is None:
        seed = runtime.clock.now().toordinal()
    return DeepRequest(None if everything else persons or _PERSONS, site, seed)


def run_deep(console: Terminal, runtime: Runtime, request: DeepRequest) -> DeepReport:
    """Compare, with words for people. Raises what `verify_deep` raises."""
    from pipeline.quality.deep.run import verify_deep

    with console.status("deep verification") as status:

        def show(stage: str, done: int, total: int) -> None:
            share = f" {100 * done / total:.0f} %" if total else f" {done:,}" if done else ""
            status.update(Text(f"deep verification: {stage}{share}"))

        report = verify_deep(runtime, request, show)
    _print(console, report, request)
    return report


def refuse_differences(report: DeepReport) -> None:
    """Raises AccountingError when there is one."""
    if report.differences:
        rows = sum(difference.count for difference in report.differences)
        raise AccountingError(
            f"The warehouse is not what a fresh load makes: {len(report.differences)} kinds of differences, {rows:,} in all.",
            "`epic-omop remap --site NAME` maps everything of a site again and fixes them; please report them as well.",
        )


_DIFFERENCE = (
    Column("table", "table", "code"),
    Column("resource_type", "resource type", "code"),
    Column("what", "what", "code"),
    Column("rows", "rows", "count"),
    Column("first", "first of them"),
)


def deep_as_json(report: DeepReport, request: DeepRequest) -> dict[str, Any]:
    """Ids of rows and resources, and counts; no patient data."""
    return asdict(report) | {"seed": request.seed, "rows": dict(report.rows), "left_out": dict(report.left_out)}


def _print(console: Terminal, report: DeepReport, request: DeepRequest) -> None:
    who = "everything" if request.persons is None else f"{report.persons:,} persons (seed {request.seed})"
    console.print(
        f"Compared with a fresh load: {who}, {report.resources:,} resources, {report.rows.total():,} rows,"
        f" in {report.seconds:.1f} s.",
    )
    for reason, count in report.left_out.items():
        console.print(
            f"Not compared: {count:,} resources ({reason}), with all that {report.persons_left_out:,} persons have.",
        )
    if not report.all_rowless:
        console.print(
            f"{report.rowless:,} lines without rows were looked through for those of the persons; there are more."
        )
    if report.open_dead_letters:
        console.print(f"{report.open_dead_letters:,} open dead letters have no rows, and are not compared.")
    if not report.resources:
        console.print("There was nothing to compare.")
        return
    if not report.differences:
        console.print(words(styled("✓", "green"), " Every row and every link is as a fresh load makes it."))
        return
    listing = Listing("Not as a fresh load makes it", _DIFFERENCE)
    for difference in report.differences[:_MOST_SHOWN]:
        first = difference.row_ids or difference.resources
        firsts = ("resources " if not difference.row_ids else "") + ", ".join(map(str, first))
        what = difference.column or difference.kind
        listing.add(difference.table, difference.resource_type, what, difference.count, firsts)
    print_listing(console, listing)
    if len(report.differences) > _MOST_SHOWN:
        console.print(f"… and {len(report.differences) - _MOST_SHOWN} kinds more.")
