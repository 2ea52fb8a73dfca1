"""`epic-omop`: puts the command groups together and turns every expected error into a message and an exit code."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from omop_schema.versions import IG_VERSION, CdmVersion
from pipeline.commands import (
    access_log,
    alerts,
    backup,
    crawl,
    database,
    dead_letters,
    demo,
    erase,
    explain,
    export,
    health,
    hydrate,
    ingest,
    keys,
    lakehouse,
    landing,
    manifest,
    mappings,
    metrics,
    remap,
    report,
    retention,
    sandbox,
    status,
    ui,
    unmapped,
    view,
    vocabulary,
)
from pipeline.commands.closed_output import EXIT_CODE as CLOSED_OUTPUT
from pipeline.commands.closed_output import drop_output, flush_output, is_of_closed_output
from pipeline.commands.help_texts import fill_help
from pipeline.commands.terminal import Terminal, echo, lines, styled, survive_any_encoding, words
from pipeline.core.errors import EpicOmopError
from pipeline.core.logs import configure_logging
from pipeline.core.private_files import work_privately
from pipeline.core.settings import home_folder, load_log_settings
from pipeline.core.unexpected import described
from pipeline.core.workflow import working_as

__all__ = ["app", "main"]

app = typer.Typer(
    name="epic-omop",
    help=(
        "Epic FHIR bulk exports into an OMOP CDM database, every night, losing nothing silently.\n\n"
        "First steps: [bold]epic-omop demo[/bold] shows the whole way with a simulated Epic. For your own site write"
        " sites.yaml (README), then [bold]db init[/bold], [bold]vocabulary load DIR[/bold], [bold]run --site NAME[/bold]."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(database.app, name="db")
app.command("psql", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(database.psql)
app.add_typer(vocabulary.app, name="vocabulary")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(view.app, name="view")
app.add_typer(mappings.app, name="mappings")
app.add_typer(keys.app, name="keys")
app.add_typer(landing.app, name="landing")
app.add_typer(lakehouse.app, name="lakehouse")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(report.app, name="report")
app.add_typer(alerts.app, name="alerts")
app.add_typer(retention.app, name="retention")
app.add_typer(backup.app, name="backup")
app.command("restore")(backup.restore)
app.add_typer(unmapped.app, name="unmapped")
export.register(app)
ingest.register(app)
hydrate.register(app)
crawl.register(app)
erase.register(app)
remap.register(app)
explain.register(app)
status.register(app)
health.register(app)
metrics.register(app)
access_log.register(app)
ui.register(app)
demo.register(app)
manifest.register(app)
lakehouse.register_former_name(app)


def _print_versions(asked: bool) -> None:
    """Its own first, alone in the first line; then what it follows."""
    if asked:
        echo(f"epic-omop {version('epic-omop')}")
        echo(f"OMOP CDM {' and '.join(version.label for version in CdmVersion)}, HL7 FHIR to OMOP {IG_VERSION}")
        raise typer.Exit


@app.callback()
def _program(
    show_version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_versions, help="Print the versions, and end."),
    ] = False,
) -> None: ...


fill_help(app)

_errors = Terminal(stderr=True, highlight=False)


#: Of a command that Ctrl-C has ended: 128 + SIGINT.
_STOPPED = 130


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 wrong use, 70 defect, 74 storage, 75 try again later, 130 stopped by
    Ctrl-C, 141 nobody reads the output any more."""
    try:
        survive_any_encoding(sys.stdout, sys.stderr)
        _run()
    except BaseException as error:
        if not is_of_closed_output(error):
            raise
        drop_output()
        sys.exit(CLOSED_OUTPUT)


def _run() -> None:
    try:
        work_privately(home_folder())
        configure_logging(load_log_settings())
        with working_as(_command_named(sys.argv[1:])):
            _call()
    except EpicOmopError as error:
        _end_with(error)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one is not to interrupt the end
        _errors.print("Stopped. What was committed stays; run the same command to continue.")
        sys.exit(_STOPPED)
    except Exception as error:
        if is_of_closed_output(error):
            raise
        from pipeline.warehouse.server_failures import server_failure  # most commands do without a database's libraries

        _end_with(server_failure(error) or described(error, home_folder()))


def _call() -> None:
    """The command. Of what typer makes exit codes without a word, Ctrl-C and broken pipes, the causes are given back."""
    try:
        app()
    except SystemExit as end:
        flush_output()
        if end.code == _STOPPED:
            raise KeyboardInterrupt from None
        if end.code == 1 and isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        raise


def _end_with(error: EpicOmopError) -> NoReturn:
    try:
        _errors.print(words(styled("Error: ", "bold red"), lines(error.message.split("\n"))))
        if error.advice:
            _errors.print(lines(error.advice.split("\n")))
    except OSError:  # nothing can be reported, as on a full disk: then the exit code says it alone
        drop_output()
    sys.exit(error.exit_code)


def _command_named(arguments: list[str]) -> str:
    """`epic-omop export`, `epic-omop site check`: without options, which may name what is nobody's business."""
    groups = {group.name for group in app.registered_groups}
    words = [word for word in arguments[:2] if not word.startswith("-")]
    return " ".join(["epic-omop", *words[: 2 if words[:1] and words[0] in groups else 1]])


if __name__ == "__main__":
    main()
