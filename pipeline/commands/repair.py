"""`epic-omop dead-letters repair`: lines of dead letters into a private file, and the repaired file through the pipeline."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Terminal, bold, words
from pipeline.commands.warehouse_state import refuse_empty
from pipeline.core.errors import PermanentError, UsageError

if TYPE_CHECKING:
    from pipeline.load.repair import RepairOutcome
    from pipeline.warehouse.runtime import Runtime

__all__ = ["repair"]

_SAID = {"loaded": "resolved", "excluded": "resolved", "open": "still open", "refused": "refused"}


def repair(
    file: Annotated[Path, typer.Argument(help="The file with the lines. It holds patient data: 0600.")],
    letter: Annotated[
        list[int] | None, typer.Option("--id", help="Write this letter's line into FILE; repeat for several.")
    ] = None,
    code: Annotated[str | None, typer.Option("--code", help="Write the lines of this code into FILE.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="With --code: only this site.")] = None,
    edit: Annotated[bool, typer.Option("--edit", help="Open FILE in $EDITOR, then load what was repaired.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete FILE when every letter in it is resolved.")] = False,
) -> None:
    """Repair lines of dead letters by hand: written with --id or --code into FILE, edited, and loaded without them.

    Above each line stands `# letter ID`. A line that is repaired closes its letter; one that is rejected again stays open with
    its new reason; one whose letter is closed already, or whose resource a newer export has brought, is refused.
    The site sends the broken line again unless it is mended there too.
    Exit code 0: all are resolved; 1: something is still open or refused; 2: the file cannot be used.

    Example: epic-omop dead-letters repair broken.txt --id 17 --id 18 --edit
    """
    from pipeline.load.repair import repair as repair_lines
    from pipeline.load.repair_file import read_repairs
    from pipeline.warehouse.access_looks import record_look
    from pipeline.warehouse.runtime import Runtime

    console = Terminal(highlight=False)
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    if site is not None:
        known_site(runtime, site)
        if code is None:
            raise UsageError("--site goes with --code.", "A letter named by --id says its site itself.")
    if letter or code is not None:
        _write(console, runtime, file, letter or [], code, site)
        if not edit:
            console.print(f"Repair them, then run `epic-omop dead-letters repair {file}`.", soft_wrap=True)
            return
    if edit:
        _edit(file)
    lines = read_repairs(file)
    if not lines:
        raise UsageError(f"{file} holds no line.", "Below `# letter ID` stands the repaired line.")
    record_look(runtime, "dead letter", resources=len(lines), detail="repaired lines")
    outcomes = []
    for outcome in repair_lines(runtime, lines):
        _print(console, outcome)
        outcomes.append(outcome)
    _finish(console, file, outcomes, delete=delete)


def _write(
    console: Terminal, runtime: Runtime, file: Path, letters: list[int], code: str | None, site: str | None
) -> None:
    from pipeline.load.repair_file import refuse_existing, write_repairs
    from pipeline.load.repair_source import lines_to_repair
    from pipeline.warehouse.access_looks import record_look

    refuse_existing(file)
    found = lines_to_repair(runtime, letters, code=code, site=site)
    if not found:
        console.print("No open dead letter matches.")
        raise typer.Exit(1)
    for name, count in Counter(line.site for line in found).items():
        record_look(runtime, "dead letter", site=name, resources=count, detail="written to a file")
    write_repairs(file, [(line.letter, line.problem, line.raw) for line in found])
    console.print(f"{file} holds {len(found):,} lines, readable by you alone. They are patient data.", soft_wrap=True)


def _edit(file: Path) -> None:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        program = shlex.split(command)
        finished = subprocess.run([*program, str(file)], check=False)  # noqa: S603 - the user's own editor
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The editor {command} cannot be started.",
            "Set EDITOR, or edit the file and run the command without --edit.",
        ) from error
    if finished.returncode:
        raise UsageError(f"The editor ended with {finished.returncode}: nothing was loaded.", "Run the command again.")
    if file.is_file() and not file.is_symlink():
        file.chmod(0o600)  # editors that write a new file give it the mode that they please


def _print(console: Terminal, outcome: RepairOutcome) -> None:
    name = f"letter {outcome.letter}" if outcome.letter is not None else f"line {outcome.place}"
    console.print(words(bold(name), f": {_SAID[outcome.outcome]}{_because(outcome)}"), soft_wrap=True)


def _because(outcome: RepairOutcome) -> str:
    if outcome.outcome == "loaded":
        return ""
    if outcome.outcome == "excluded":
        return f"; a rule excludes the resource ({outcome.reason})"
    if outcome.outcome == "refused":
        return f": {outcome.reason}"
    return f" with {outcome.code}{f' at {outcome.path}' if outcome.path else ''}: {outcome.reason}"


def _finish(console: Terminal, file: Path, outcomes: list[RepairOutcome], *, delete: bool) -> None:
    counts = Counter(_SAID[one.outcome] for one in outcomes)
    console.print(", ".join(f"{count:,} {name}" for name, count in counts.items()) + ".")
    resolved = counts["resolved"]
    if resolved:
        console.print("Mend them at the site as well: the next export brings its own lines again.", soft_wrap=True)
    if resolved == len(outcomes) and delete:
        file.unlink()
        console.print(f"{file} is deleted.", soft_wrap=True)
        return
    console.print(f"{file} holds patient data: delete it when you need it no more.", soft_wrap=True)
    if resolved < len(outcomes):
        raise PermanentError(
            f"{len(outcomes) - resolved} of {len(outcomes)} lines were not resolved.",
            "See the reasons above; `epic-omop dead-letters show ID` says what a code means.",
        )
