"""`epic-omop dead-letters`: what could not be loaded, why, and once more."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Table, Terminal, bold, document, words
from pipeline.commands.warehouse_state import refuse_empty
from pipeline.core.errors import UsageError

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Lines that could not be loaded: list them, show one with its raw line, send them through again.\n\n"
    "A dead letter closes by itself when its resource is loaded by a later export or a replay.",
)


@app.command("list")
def list_(
    site: Annotated[str | None, typer.Option("--site", help="Only this site.")] = None,
    code: Annotated[str | None, typer.Option("--code", help="Only this code, such as json_invalid.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
) -> None:
    """List open dead letters: what, where and why; no patient's data is shown."""
    from pipeline.publication.dead_letters import list_dead_letters
    from pipeline.warehouse.runtime import Runtime

    console = Terminal()
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        if site is not None:
            known_site(runtime, site)
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


@app.command()
def show(
    letter: Annotated[int, typer.Argument(help="Id of the dead letter.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the line itself, byte for byte: patient data!")] = False,
) -> None:
    """Show one dead letter; with --raw its line, to look at or to repair.

    Example: epic-omop dead-letters show 17 --raw
    """
    from pipeline.publication.dead_letters import get_dead_letter
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
    console.print("The line itself holds patient data: --raw writes it.")


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
) -> None:
    """Send dead letters through the pipeline again, for example after a mapping was fixed."""
    from pipeline.commands.tables import print_load_report
    from pipeline.load.replay import replay_dead_letters
    from pipeline.quality.report import load_report
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = Terminal()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    reports = replay_dead_letters(runtime, known_site(runtime, site), ids=letter, code=code)
    if not reports:
        console.print("No open dead letter matches.")
        return
    with runtime.connect() as connection:
        report = load_report(
            connection, runtime.settings.cdm_schema, runtime.settings.vocab_schema, [item.export_id for item in reports]
        )
    print_load_report(console, report)
