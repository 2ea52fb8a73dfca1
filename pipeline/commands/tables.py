"""Tables that several commands print. Words and layout only; the numbers come from `pipeline.quality.report`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD

from pipeline.commands.terminal import DownloadColumn, Progress, Table, Terminal, bold, progress, words

if TYPE_CHECKING:
    from pipeline.load.load import LoadOptions
    from pipeline.quality.report import LoadReport

__all__ = ["load_progress", "number_table", "print_load_report"]


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

    _print_outcomes(console, report)
    _print_tables(console, report)
    _print_mapping(console, report)
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


def number_table(*columns: str, title: str) -> Table:
    """A compact table whose first column is text and whose others are numbers; fits into 80 characters."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _print_outcomes(console: Terminal, report: LoadReport) -> None:
    columns = ("lines", "loaded", "unchanged", "superseded", "excluded", "rejected")
    table = number_table("resource type", *columns, title="Lines landed, and their outcomes")
    for resource_type, counts in report.outcomes.items():
        table.add_row(resource_type, *(_number(counts[name]) for name in columns))
    table.add_section()
    table.add_row("all", *(_number(report.total[name]) for name in columns))
    console.print(table)
    if report.exclusions:
        reasons = ", ".join(
            f"{resource_type} {reason} {count:,}"
            for (resource_type, reason), count in list(report.exclusions.items())[:8]
        )
        more = f", and {len(report.exclusions) - 8} more" if len(report.exclusions) > 8 else ""
        console.print(f"Excluded by rule: {reasons}{more}.")


def _print_tables(console: Terminal, report: LoadReport) -> None:
    table = number_table("OMOP table", "rows", "added", "removed", title="Rows in the warehouse")
    for name, (rows, inserted, deleted) in report.tables.items():
        table.add_row(name, _number(rows), _number(inserted), _number(deleted))
    console.print(table)


def _print_mapping(console: Terminal, report: LoadReport) -> None:
    if report.mapping_rates:
        table = number_table(
            "resource type", "coded rows", "mapped", "share", title="Codes mapped to a standard concept"
        )
        for resource_type, (mapped, coded) in report.mapping_rates.items():
            table.add_row(
                resource_type, _number(coded), _number(mapped), f"{100 * mapped / coded:.1f} %" if coded else "–"
            )
        console.print(table)
    if report.unmapped:
        table = number_table("unmapped code", "rows", "element", "system", title="The most frequent unmapped codes")
        table.columns[2].justify = table.columns[3].justify = "left"
        for column in (table.columns[0], table.columns[3]):
            column.no_wrap, column.overflow = False, "fold"
        for code in report.unmapped:
            named = " ".join(filter(None, (code.code or "(text only)", code.display)))
            element = f"{code.resource_type}.{code.element}"
            table.add_row(named, _number(code.count), element, code.system or "–")
        console.print(table)


def _number(value: int) -> str:
    return f"{value:,}" if value else "·"
