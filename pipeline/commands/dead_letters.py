"""`epic-omop dead-letters`: what could not be loaded, why, since when, and once more. Repairing is in `repair.py`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.repair import repair
from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Table, Terminal, bold, document, words
from pipeline.commands.warehouse_state import refuse_empty
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

    from pipeline.quality.dead_letter_history import OpenCode
    from pipeline.warehouse.runtime import Runtime

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
) -> None:
    """List open dead letters: what, where and why; no patient's data is shown.

    Example: epic-omop dead-letters list --by code
    """
    from pipeline.publication.dead_letters import list_dead_letters
    from pipeline.warehouse.runtime import Runtime

    console = Terminal()
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        if site is not None:
            known_site(runtime, site)
        if by is not None:
            _print_by_code(console, runtime, _open_codes(runtime, connection, site, code))
            return
        dead_letters = list_dead_letters(connection, site=site, code=code, limit=limit)
        summary = connection.execute(
            "SELECT code, resource_type, count(*), count(DISTINCT caused_by) FROM dead_letter_open"
            " WHERE (%(site)s::text IS NULL OR site = %(site)s) AND (%(code)s::text IS NULL OR code = %(code)s)"
            " GROUP BY 1, 2 ORDER BY 3 DESC",
            {"site": site, "code": code},
        ).fetchall()
    if not summary:
        console.print("There is no open dead letter.")
        return
    table = Table("id", "site", "type", "where", "stage", "code", "path", "reason")
    for dead_letter in dead_letters:
        where = f"{dead_letter.file.removeprefix('files/')}:{dead_letter.line}"
        table.add_row(
            str(dead_letter.id),
            dead_letter.site,
            dead_letter.resource_type,
            where,
            dead_letter.stage,
            dead_letter.code,
            dead_letter.path or "",
            dead_letter.reason,
        )
    console.print(table)
    for kind, resource_type, count, causes in summary:
        caused = f", all caused by {causes:,} other resources" if causes else ""
        console.print(f"{count:,} × {kind} in {resource_type}{caused}", highlight=False)


def _open_codes(runtime: Runtime, connection: psycopg.Connection, site: str | None, code: str | None) -> list[OpenCode]:
    from pipeline.quality.dead_letter_history import open_by_code

    found = open_by_code(connection, runtime.clock.now(), site=site)
    return [one for one in found if code is None or one.code == code]


def _print_by_code(console: Terminal, runtime: Runtime, codes: list[OpenCode]) -> None:
    """A few lines a code, which are readable at any width."""
    from pipeline.quality.line_code_texts import rejection_text

    if not codes:
        console.print("There is no open dead letter.")
    for one in codes:
        text = rejection_text(one.code)
        days = (runtime.clock.now() - one.oldest).days
        console.print(words(bold(one.code), f": {one.letters:,} open, the oldest for {_days(days)}"), highlight=False)
        console.print(f"  median   {_days(one.days_open)} open", highlight=False)
        console.print(f"  sites    {_counts(one.by_site)}", highlight=False, soft_wrap=True)
        console.print(f"  types    {_counts(one.by_type)}", highlight=False, soft_wrap=True)
        if one.causes:
            console.print(f"  wait for {one.causes:,} other resources", highlight=False)
        if text is None:
            console.print("  meaning  a code of a former version; a replay says what it is now", soft_wrap=True)
            continue
        console.print(f"  meaning  {text.summary}", highlight=False, soft_wrap=True)
        console.print(f"  to do    {text.what_to_do}", highlight=False, soft_wrap=True)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _days(days: int) -> str:
    return "less than a day" if days < 1 else "1 day" if days == 1 else f"{days:,} days"


@app.command()
def history(
    site: Annotated[str | None, typer.Option("--site", help="Only this site.")] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=36_500, help="Letters closed in so many days.")] = 90,
) -> None:
    """Show how long dead letters stay open, by code: those of now, and how those of before were closed.

    A letter is open since a line of its resource was first rejected, also where the line has changed since.

    Example: epic-omop dead-letters history --days 30
    """
    from pipeline.quality.dead_letter_history import code_histories
    from pipeline.warehouse.runtime import Runtime

    console = Terminal(highlight=False)
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        if site is not None:
            known_site(runtime, site)
        found = code_histories(connection, runtime.clock.now(), days=days, site=site)
    if not found:
        console.print(f"No dead letter is open, and none was closed in {_days(days)}.")
    for one in found:
        ended = [f"{one.count(name):,} {name}" for name in ("resolved", "repaired", "superseded") if one.count(name)]
        console.print(bold(one.code))
        if one.open_now:
            middle, longest = _days(one.open_days or 0), _days(one.longest_open or 0)
            console.print(f"  open now  {one.open_now:,}: median {middle}, {longest} at most", soft_wrap=True)
        if ended:
            console.print(f"  closed    {', '.join(ended)}", soft_wrap=True)
        if one.days_to_resolve is not None:
            middle, longest = _days(one.days_to_resolve), _days(one.longest or 0)
            console.print(f"  took      median {middle}, {longest} at most", soft_wrap=True)


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
) -> None:
    """Send dead letters through the pipeline again, for example after a mapping was fixed.

    Example: epic-omop dead-letters replay --site north --code modifier_unknown
    """
    from pipeline.commands.tables import print_load_report
    from pipeline.load.replay import replay_dead_letters
    from pipeline.quality.report import load_report
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = Terminal()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    reports = replay_dead_letters(runtime, known_site(runtime, site), ids=letter, code=code, export_id=export)
    if not reports:
        console.print("No open dead letter matches.")
        return
    with runtime.connect() as connection:
        report = load_report(
            connection, runtime.settings.cdm_schema, runtime.settings.vocab_schema, [item.export_id for item in reports]
        )
    print_load_report(console, report)
