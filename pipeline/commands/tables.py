"""Tables of a load, which several commands print. Words only: the numbers come from `pipeline.quality.report`, and how a
table is shown is `output.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pipeline.commands.output import Column, Listing, listing_as_json, print_listing
from pipeline.commands.terminal import DownloadColumn, Progress, Terminal, bold, progress, words

if TYPE_CHECKING:
    from pipeline.load.load import LoadOptions
    from pipeline.quality.report import LoadReport

__all__ = ["counts_listing", "load_progress", "load_report_as_json", "print_load_report"]


def load_progress(console: Terminal, options: LoadOptions) -> tuple[Progress, LoadOptions]:
    """A progress bar (a context manager), and the options of a load that moves it."""
    bar = progress(console, DownloadColumn())
    task = bar.add_task("transform", total=None)

    def show(stage: str, done: int, total: int) -> None:
        if stage == "transform":
            bar.update(task, completed=done, total=total)
        else:
            bar.update(task, description=stage)

    def show_fetched(done: int, total: int) -> None:
        bar.update(task, description=f"references {done:,} of {total:,}")

    return bar, replace(options, progress=show, fetch_progress=show_fetched)


def print_load_report(console: Terminal, report: LoadReport) -> None:
    """Result of a run: lines by outcome, rows by table, share of codes mapped, the most frequent unmapped codes."""
    from pipeline.quality.overlaps import overlap_sentence
    from pipeline.quality.report import vanished_sentences

    print_listing(console, _outcomes(report))
    if report.exclusions:
        console.print(_exclusions(report))
    print_listing(console, _tables(report))
    if report.mapping_rates:
        print_listing(console, _mapping(report))
    if report.unmapped:
        print_listing(console, _unmapped(report))
    if report.value_checks:
        _print_value_checks(console, report)
    for found in report.duplicates:
        console.print(
            f"{found.facts:,} facts of {found.table} are there from two resources or more ({found.rows:,} rows too many), of"
            f" persons whose rows changed: rule {found.rule}."
        )
    total = report.total
    if total["lines"] and total["unchanged"] >= 0.9 * total["lines"]:
        share = 100 * total["unchanged"] / total["lines"]
        console.print(
            f"{total['unchanged']:,} of {total['lines']:,} lines ({share:.1f} %) were unchanged and cost nothing."
        )
    if report.unchanged_by_content:
        console.print(
            f"{report.unchanged_by_content:,} lines are written anew and have the same content as before: unchanged."
        )
    for note in (*report.notes.sentences(), *vanished_sentences(report.vanished)):
        console.print(note)
    if report.overlaps:
        console.print(overlap_sentence(report.overlaps))
    if report.open_dead_letters:
        console.print(
            words(
                f"{report.open_dead_letters:,} open dead letters: ",
                bold("epic-omop dead-letters list"),
                " says what and where.",
            )
        )


def load_report_as_json(report: LoadReport) -> dict[str, Any]:
    """The same for programs: counts are numbers, each table a list of dictionaries (docs/output.md)."""
    from pipeline.quality.report import vanished_sentences

    return {
        "exports": list(report.export_ids),
        "outcomes": listing_as_json(_outcomes(report)),
        "exclusions": [
            {"resource_type": resource_type, "reason": reason, "lines": count}
            for (resource_type, reason), count in report.exclusions.items()
        ],
        "tables": listing_as_json(_tables(report)),
        "mapping": listing_as_json(_mapping(report)),
        "unmapped": listing_as_json(_unmapped(report)),
        "value_checks": [asdict(check) for check in report.value_checks],
        "duplicates": [asdict(found) for found in report.duplicates],
        "overlaps": dict(report.overlaps),
        "unchanged_by_content": report.unchanged_by_content,
        "vanished": {disposition: dict(counts) for disposition, counts in report.vanished.items()},
        "open_dead_letters": report.open_dead_letters,
        "notes": [*report.notes.sentences(), *vanished_sentences(report.vanished)],
    }


def counts_listing(title: str, column: Column, counts: Mapping[str, int], *, what: str = "resources") -> Listing:
    """A count for each name, by name, and their sum."""
    listing = Listing(title, (column, Column(what.replace(" ", "_"), what, "count")), sorted(counts.items()))
    listing.total = ("all", sum(counts.values()))
    return listing


_OUTCOMES = ("lines", "loaded", "unchanged", "superseded", "excluded", "rejected")


def _outcomes(report: LoadReport) -> Listing:
    columns = (Column("resource_type", "resource type", "code"), *(Column(name, name, "count") for name in _OUTCOMES))
    listing = Listing("Lines landed, and their outcomes", columns)
    for resource_type, counts in report.outcomes.items():
        listing.add(resource_type, *(counts[name] for name in _OUTCOMES))
    listing.total = ("all", *(report.total[name] for name in _OUTCOMES))
    return listing


def _exclusions(report: LoadReport) -> str:
    most = list(report.exclusions.items())[:8]
    reasons = ", ".join(f"{resource_type} {reason} {count:,}" for (resource_type, reason), count in most)
    more = f", and {len(report.exclusions) - len(most)} more" if len(report.exclusions) > len(most) else ""
    return f"Excluded by rule: {reasons}{more}."


def _tables(report: LoadReport) -> Listing:
    columns = (
        Column("table", "OMOP table", "code"),
        Column("rows", "rows", "count"),
        Column("added", "added", "count"),
        Column("removed", "removed", "count"),
    )
    return Listing("Rows in the warehouse", columns, [(name, *counts) for name, counts in report.tables.items()])


def _mapping(report: LoadReport) -> Listing:
    columns = (
        Column("resource_type", "resource type", "code"),
        Column("coded_rows", "coded rows", "count"),
        Column("mapped", "mapped", "count"),
        Column("share", "share", "share"),
    )
    listing = Listing("Codes mapped to a standard concept", columns)
    for resource_type, (mapped, coded) in report.mapping_rates.items():
        listing.add(resource_type, coded, mapped, mapped / coded if coded else None)
    return listing


def _unmapped(report: LoadReport) -> Listing:
    columns = (
        Column("code", "unmapped code", "code"),
        Column("display", "display"),
        Column("rows", "rows", "count"),
        Column("element", "element", "code"),
        Column("system", "system", "path"),
    )
    listing = Listing("The most frequent unmapped codes", columns)
    for code in report.unmapped:
        element = f"{code.resource_type}.{code.element}"
        listing.add(code.code or "(text only)", code.display, code.count, element, code.system)
    return listing


#: Rows of the table of numbers; the rest is summed up in a sentence.
_MOST_VALUE_CHECKS = 12
_FINDINGS = {
    "value_negative": "below 0",
    "value_implausible": "outside the limits",
    "unit_converted": "in another unit than the standard one",
}
_ACTIONS = {
    "reported": "reported",
    "keep": "kept",
    "null": "set to NULL",
    "exclude": "row left out",
    "converted": "converted",
}


def _print_value_checks(console: Terminal, report: LoadReport) -> None:
    columns = (
        Column("concept", "concept"),
        Column("numbers", "numbers", "count"),
        Column("unit", "unit", "code"),
        Column("found", "found"),
        Column("done", "done"),
    )
    listing = Listing("Numbers that rules about numbers found", columns)
    for check in report.value_checks[:_MOST_VALUE_CHECKS]:
        found, done = _FINDINGS.get(check.finding, check.finding), _ACTIONS.get(check.action, check.action)
        listing.add(check.concept, check.count, check.unit, found, done)
    print_listing(console, listing)
    rest = report.value_checks[_MOST_VALUE_CHECKS:]
    if rest:
        console.print(f"And {sum(check.count for check in rest):,} numbers of {len(rest):,} more concepts and units.")
