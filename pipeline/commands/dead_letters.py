"""`epic-omop dead-letters`: what could not be loaded, why, since when, and once more. Repairing is in `repair.py`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import Column, CsvOption, JsonOption, Listing, print_json, refuse_both, words_console
from pipeline.commands.output import show as show_listing
from pipeline.commands.repair import repair
from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Terminal, bold, document, words
from pipeline.commands.warehouse_state import refuse_empty
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.publication.dead_letters import DeadLetter
    from pipeline.quality.dead_letter_history import OpenCode

__all__ = ["app"]

_PAGE = "docs/dead-letters.md"

app = typer.Typer(
    no_args_is_help=True,
    help="Lines that could not be loaded: list them, show one with its raw line, send them through again.\n\n"
    "A dead letter closes by itself when its resource is loaded by a later export or a replay.\n\n"
    f"What each code means and what to do: {_PAGE}, or `dead-letters list --by code`.",
)
app.command("repair")(repair)


class Grouping(StrEnum):
    """By what letters are counted."""

    CODE = "code"


@app.command("list")
def list_(
    site: Annotated[str | None, typer.Option("--site", help="Only this site.")] = None,
    code: Annotated[str | None, typer.Option("--code", help="Only this code, such as json_invalid.")] = None,
    by: Annotated[
        Grouping | None, typer.Option("--by", help="Count them: what each code means, and what to do.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """List open dead letters: what, where and why; no patient's data is shown.

    Example: epic-omop dead-letters list --by code
    """
    from pipeline.publication.dead_letters import list_dead_letters
    from pipeline.quality.dead_letter_history import open_by_code
    from pipeline.warehouse.runtime import Runtime

    refuse_both(as_json=as_json, as_csv=as_csv)
    console = Terminal(highlight=False)
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        if site is not None:
            known_site(runtime, site)
        now = runtime.clock.now()
        codes = [one for one in open_by_code(connection, now, site=site) if code is None or one.code == code]
        letters = [] if by is not None else list_dead_letters(connection, site=site, code=code, limit=limit)
    is_document = as_json or as_csv
    if not codes and not is_document:
        console.print("There is no open dead letter.")
        return
    listing = _by_code(codes, now) if by is not None else _letters(letters)
    show_listing(console, listing, as_json=as_json, as_csv=as_csv)
    if by is None and not is_document:
        for one in codes:
            caused = f", caused by {one.causes:,} other resources" if one.causes else ""
            types = ", ".join(one.by_type)
            console.print(f"{one.letters:,} × {one.code} in {types}{caused}", soft_wrap=True)
        console.print("`epic-omop dead-letters list --by code` says what each means and what to do.", soft_wrap=True)


def _letters(letters: Sequence[DeadLetter]) -> Listing:
    columns = [
        Column("id", "id", "code"),
        Column("site", "site", "code"),
        Column("resource_type", "type", "code"),
        Column("place", "where", "path"),
        Column("stage", "stage", "code"),
        Column("code", "code", "code"),
        Column("path", "path", "path"),
        Column("reason", "reason"),
    ]
    listing = Listing("Open dead letters", columns)
    for letter in letters:
        where = f"{letter.file.removeprefix('files/')}:{letter.line}"
        about = (
            letter.id,
            letter.site,
            letter.resource_type,
            where,
            letter.stage,
            letter.code,
            letter.path,
            letter.reason,
        )
        listing.add(*about)
    return listing


def _by_code(codes: Sequence[OpenCode], now: datetime) -> Listing:
    from pipeline.quality.line_code_texts import rejection_text

    columns = [
        Column("code", "code", "code"),
        Column("letters", "open", "count"),
        Column("oldest_days", "oldest, days", "count"),
        Column("median_days", "median, days", "count"),
        Column("sites", "sites"),
        Column("resource_types", "types"),
        Column("causes", "wait for others", "count"),
        Column("meaning", "meaning"),
        Column("what_to_do", "what to do"),
    ]
    listing = Listing("Open dead letters by code", columns, stacked=True)
    for one in codes:
        text = rejection_text(one.code)
        meaning, what_to_do = (text.meaning, text.what_to_do) if text else (_FORMER, _REPLAY)
        counts = [[f"{name} {count:,}" for name, count in part.items()] for part in (one.by_site, one.by_type)]
        days = (now - one.oldest).days
        listing.add(one.code, one.letters, days, one.days_open, *counts, one.causes, meaning, what_to_do)
    return listing


_FORMER = "A code of a former version."
_REPLAY = "Replay it: `epic-omop dead-letters replay --site SITE --code CODE` says what it is now."


@app.command()
def history(
    site: Annotated[str | None, typer.Option("--site", help="Only this site.")] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=36_500, help="Letters closed in so many days.")] = 90,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show how long dead letters stay open, in days, by code: those of now, and how those of before were closed.

    A letter is open since a line of its resource was first rejected, also where the line has changed since.

    Example: epic-omop dead-letters history --days 30
    """
    from pipeline.quality.dead_letter_history import code_histories
    from pipeline.warehouse.runtime import Runtime

    refuse_both(as_json=as_json, as_csv=as_csv)
    console = Terminal(highlight=False)
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        if site is not None:
            known_site(runtime, site)
        found = code_histories(connection, runtime.clock.now(), days=days, site=site)
    if not found and not as_json and not as_csv:
        console.print(f"No dead letter is open, and none was closed in {days:,} days.")
        return
    columns = [
        Column("code", "code", "code"),
        Column("open", "open", "count"),
        Column("open_median_days", "median", "count"),
        Column("open_longest_days", "longest", "count"),
        Column("resolved", "resolved", "count"),
        Column("repaired", "repaired", "count"),
        Column("superseded", "superseded", "count"),
        Column("median_days", "took, median", "number"),
        Column("longest_days", "longest", "number"),
    ]
    listing = Listing(f"Dead letters, and those of the last {days:,} days that are closed; in days", columns)
    for one in found:
        ended = [one.count(name) for name in ("resolved", "repaired", "superseded")]
        listing.add(one.code, one.open_now, one.open_days, one.longest_open, *ended, one.days_to_resolve, one.longest)
    show_listing(console, listing, as_json=as_json, as_csv=as_csv)


@app.command()
def show(
    letter: Annotated[int, typer.Argument(help="Id of the dead letter.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the line itself, byte for byte: patient data!")] = False,
) -> None:
    """Show one dead letter; with --raw its line, to look at or to repair.

    Example: epic-omop dead-letters show 17 --raw
    """
    from pipeline.publication.dead_letters import get_dead_letter
    from pipeline.quality.line_code_texts import rejection_text
    from pipeline.warehouse.access_looks import record_look
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        found = get_dead_letter(connection, letter)
    if found is None:
        raise UsageError(f"There is no dead letter {letter}.", "`epic-omop dead-letters list` shows the open ones.")
    about, line = found
    record_look(
        runtime,
        "dead letter",
        site=about.site,
        resource_type=about.resource_type,
        resources=1,
        export_id=line.export_id,
        detail="raw line" if raw else "without its line",
    )
    if raw:
        _write_raw(line.raw)
        return
    console = Terminal(highlight=False)
    for name in ("id", "site", "resource_type", "resource_id", "stage", "code", "path", "reason", "caused_by"):
        console.print(words(bold(f"{name:15}"), f" {getattr(about, name) or '–'}"))
    console.print(words(bold(f"{'line':15}"), f" {about.file}, line {about.line} of export {line.export_id}"))
    console.print(words(bold(f"{'bytes':15}"), f" {line.byte_length:,} from offset {line.byte_offset:,}"))
    if (text := rejection_text(about.code)) is not None:
        console.print(words(bold(f"{'meaning':15}"), f" {text.meaning}"))
        console.print(words(bold(f"{'what to do':15}"), f" {text.what_to_do}"))
    console.print(
        f"The line itself holds patient data: --raw writes it; `dead-letters repair FILE --id {letter}` writes it into a"
        " private file to be repaired.",
        soft_wrap=True,
    )


def _write_raw(line: bytes) -> None:
    """Byte for byte into a file or a pipe; in a terminal what that would obey is shown."""
    if sys.stdout.isatty():
        document(line.decode("utf-8", "backslashreplace") + "\n")
        return
    sys.stdout.buffer.write(line + b"\n")


@app.command()
def replay(
    site: Annotated[str, typer.Option("--site", help="The site whose dead letters go through again.")],
    letter: Annotated[list[int] | None, typer.Option("--id", help="Only this one; repeat for several.")] = None,
    code: Annotated[str | None, typer.Option("--code", help="Only those with this code.")] = None,
    export: Annotated[int | None, typer.Option("--export", help="Only those that this export brought last.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters through the pipeline again, for example after a mapping was fixed.

    Example: epic-omop dead-letters replay --site north --code modifier_unknown
    """
    from pipeline.commands.tables import load_report_as_json, print_load_report
    from pipeline.load.replay import replay_dead_letters
    from pipeline.quality.report import load_report
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = words_console(as_document=as_json)
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    reports = replay_dead_letters(runtime, known_site(runtime, site), ids=letter, code=code, export_id=export)
    if not reports:
        console.print("No open dead letter matches.")
        if as_json:
            print_json({"exports": []})
        return
    with runtime.connect() as connection:
        report = load_report(
            connection, runtime.settings.cdm_schema, runtime.settings.vocab_schema, [item.export_id for item in reports]
        )
    if as_json:
        print_json(load_report_as_json(report))
    else:
        print_load_report(console, report)
