"""`epic-omop lakehouse`: the CDM as Parquet, for people who read it with DuckDB or Spark."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

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
from pipeline.commands.terminal import (
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Terminal,
    progress,
    styled,
    words,
)
from pipeline.core.errors import LakehouseError, UsageError

if TYPE_CHECKING:
    from pipeline.lakehouse.snapshot import SnapshotReport

__all__ = ["app", "register_former_name"]

app = typer.Typer(no_args_is_help=True, help="The CDM as Parquet files: write a snapshot, or check one.")

_To = Annotated[
    str | None, typer.Option("--to", metavar="PATH", help="Local folder to write to, if not EPIC_OMOP_LAKEHOUSE.")
]
_WithVocabulary = Annotated[
    bool, typer.Option("--with-vocabulary", help="Also concept and the other vocabulary tables; mind their licences.")
]
_WithLineage = Annotated[
    bool, typer.Option("--with-lineage", help="Also etl/row_source, which holds the FHIR ids of resources.")
]
_Keep = Annotated[int, typer.Option("--keep", min=0, help="Older snapshots that stay, for those who are reading them.")]
_GroupReadable = Annotated[
    bool, typer.Option("--group-readable", help="The folder's group may read; otherwise its owner alone.")
]
_DespiteChecks = Annotated[
    bool, typer.Option("--despite-checks", help="Write it although checks of the warehouse fail (epic-omop verify).")
]


def register_former_name(app: typer.Typer) -> None:
    """Add `publish`, the name of both commands in version 0.1; hidden, and to go after 0.2."""
    app.command("publish", hidden=True)(_publish)


@app.command()
def snapshot(
    to: _To = None,
    with_vocabulary: _WithVocabulary = False,
    with_lineage: _WithLineage = False,
    keep: _Keep = 1,
    group_readable: _GroupReadable = False,
    despite_checks: _DespiteChecks = False,
    as_json: JsonOption = False,
) -> None:
    """Write the CDM as Parquet files: one consistent state, readable by DuckDB, Spark and polars.

    Each run writes a whole new snapshot below PATH/snapshots, then turns PATH/latest to it in one step: readers see the
    state before or after, also when loads run meanwhile or this run is killed.

    To read it: duckdb -init PATH/latest/open.sql, or spark.read.parquet on PATH/latest/cdm/measurement. The layout,
    and what holds, is in docs/lakehouse.md.

    The warehouse's checks are asked first: where one fails that analysts rely on, nothing is written.

    Exit code 70: a check fails; 74: the folder or its disk cannot be used; 75: another run writes to the folder.

    Example: epic-omop lakehouse snapshot --to lake
    """
    from pipeline.lakehouse.snapshot import SnapshotOptions, publish_snapshot
    from pipeline.lakehouse.store import lakehouse_folder
    from pipeline.warehouse.runtime import Runtime

    console = words_console(as_document=as_json)
    runtime = Runtime.from_environment()
    target = to or runtime.settings.lakehouse
    if not target:
        raise UsageError("Say where to: --to PATH.", "A local folder, new or written to before.")
    options = SnapshotOptions(with_vocabulary, with_lineage, keep, group_readable, despite_checks=despite_checks)
    bar, show = _progress(console, "reading", MofNCompleteColumn())
    with bar:
        report = publish_snapshot(
            runtime, lakehouse_folder(target), options, lambda table, done, total: show(table, done, max(done, total))
        )
    if as_json:
        print_json(_as_json(report))
    else:
        _print(console, report)


@app.command()
def check(
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="The lakehouse or one snapshot in it, if not EPIC_OMOP_LAKEHOUSE."),
    ] = None,
) -> None:
    """Verify that the latest snapshot, or the one at PATH, is as it was written. Writes nothing.

    Exit code 74: the snapshot is damaged, or there is none.

    Example: epic-omop lakehouse check lake
    """
    from pipeline.core.settings import load_settings

    place = path or load_settings().lakehouse
    if not place:
        raise UsageError("Say which: epic-omop lakehouse check PATH.", "The folder that snapshots were written to.")
    _check(Terminal(highlight=False), place)


def _publish(
    *,
    to: _To = None,
    with_vocabulary: _WithVocabulary = False,
    with_lineage: _WithLineage = False,
    keep: _Keep = 1,
    group_readable: _GroupReadable = False,
    check: Annotated[str | None, typer.Option("--check", metavar="PATH")] = None,
) -> None:
    """The former name of `epic-omop lakehouse snapshot`, and with --check of `epic-omop lakehouse check`."""
    new_name = "epic-omop lakehouse snapshot" if check is None else "epic-omop lakehouse check PATH"
    Terminal(stderr=True, highlight=False).print(
        f"`epic-omop publish` is now `{new_name}`; the old name goes with the next version.", style="yellow"
    )
    if check is not None:
        if to is not None:
            raise UsageError("Either --to or --check.", "--check only reads what an earlier run wrote.")
        _check(Terminal(highlight=False), check)
    else:
        snapshot(to, with_vocabulary, with_lineage, keep, group_readable)


def _check(console: Terminal, path: str) -> None:
    from pipeline.lakehouse.check import check_snapshot, snapshot_to_check

    folder = snapshot_to_check(path)
    bar, show = _progress(console, "checking", DownloadColumn())
    with bar:
        problems = list(check_snapshot(folder, lambda done, total: show("checking", done, total)))
    for problem in problems:
        console.print(words(styled("✗", "red"), f" {problem}"), soft_wrap=True)
    if problems:
        raise LakehouseError(
            f"Snapshot {folder.name} is damaged: {len(problems):,} of its files are not as they were written.",
            "Do not read it; `epic-omop lakehouse snapshot --to PATH` writes a new one.",
        )
    console.print(words(styled("✓", "green"), f" Snapshot {folder.name} is as it was written, file by file."))


def _progress(console: Terminal, what: str, column: ProgressColumn) -> tuple[Progress, Callable[[str, int, int], None]]:
    """A bar, and the callback (description, done, total)."""
    bar = progress(console, column)
    task = bar.add_task(what, total=None)
    return bar, lambda text, done, total: bar.update(task, description=text, completed=done, total=total)


_TABLE = (
    Column("table", "table", "path"),
    Column("rows", "rows", "count"),
    Column("files", "files", "count"),
    Column("bytes", "size", "size"),
)


def _rows(report: SnapshotReport) -> list[tuple[str, int, int, int]]:
    return [(path, *counts) for path, counts in report.tables.items()]


def _as_json(report: SnapshotReport) -> dict[str, Any]:
    return {
        "snapshot": report.snapshot,
        "folder": str(report.folder),
        "rows": report.rows,
        "bytes": report.bytes,
        "removed_snapshots": report.removed_snapshots,
        "tables": listing_as_json(Listing("", _TABLE, [*_rows(report)])),
    }


def _print(console: Terminal, report: SnapshotReport) -> None:
    print_listing(console, Listing("Written", _TABLE, [row for row in _rows(report) if row[1]]))
    empty = sum(1 for rows, _, _ in report.tables.values() if not rows)
    vocabulary = report.metadata["vocabulary"]
    console.print(
        f"Snapshot {report.snapshot}: {report.rows:,} rows, {report.bytes / 1e6:,.1f} MB, {empty} empty tables;"
        f" vocabulary {vocabulary['release'] if vocabulary else 'none'}."
    )
    if report.removed_snapshots:
        console.print(f"{report.removed_snapshots} older snapshots were removed (--keep).")
    console.print(f"Read it: duckdb -init {report.folder.parents[1]}/latest/open.sql", soft_wrap=True)
