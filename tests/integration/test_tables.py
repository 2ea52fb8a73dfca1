"""Tables of all commands: at every width and in a pipe no code, path, number or time is cut; documents are read by programs.

The commands run in this process, with a terminal of so many columns; `test_output.py` shows the component itself.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import typer

import pipeline
from pipeline.commands import output
from pipeline.commands.cli import app
from pipeline.commands.terminal import Terminal
from tests.command_line import CommandLine
from tests.databases import Prepared
from tests.integration.support import encounter, observation, patient

WIDTHS = (60, 80, 100, 200, None)
LONG_CODE = "=LOCAL-CODE-" + "0123456789" * 7
LONG_SYSTEM = "urn:oid:1.2.840.114350.1.13.0.1.7.2." + "768282." * 8 + "1"

#: A line for each command that shows a table and needs no site that answers; the others print by the same component.
WALK = (
    "status",
    "status --site north",
    "verify",
    "report mapping",
    "report coverage",
    "unmapped status",
    "unmapped import {home}/decided.csv --site north --dry-run",
    "landing status",
    "landing prune --dry-run",
    "vocabulary list",
    "vocabulary show",
    "vocabulary suggest creatinine",
    "mappings show Observation",
    "mappings check --site wrong",
    "site list",
    "erase --list",
    "dead-letters list",
    "dead-letters list --by code",
    "dead-letters history",
    "access-log",
    "db status",
    "health warehouse",
    "keys check {home}/key.pem",
    "lakehouse snapshot --to {home}/lake",
    "ingest --site north --from {home}/files --force",
    "dead-letters replay --site north",
    "remap --dry-run --all",
    "alerts list",
    "retention settings",
    "retention run --dry-run",
)
_DRAWING = ("_print_table", "_print_stacked", "_print_lines")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen(io.StringIO):
    """Standard output of a terminal, or of a pipe."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture(scope="module")
def north(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    home = tmp_path_factory.mktemp("home")
    (home / "sites.yaml").write_text(
        "sites:\n  north: {time_zone: America/Chicago}\n  wrong: {}\n  epic:\n    fhir_url: https://epic.example/"
        + "a-very-long-path/" * 6
        + "\n    client_id: c\n    private_key_file: key.pem\n    groups: [eEIjHLhL0123456789, eEIjHLhL9876543210]\n"
    )
    overlay = home / "mappings" / "sites" / "wrong"
    overlay.mkdir(parents=True)
    (overlay / "Observation.yaml").write_text("resource: Observation\nviews:\n  - name: nowhere\n    colum: []\n")
    (home / "decided.csv").write_text("source_code,source_system,target_concept_id,status\nx,y,abc,APPROVED\n")
    _write_files(home / "files")
    with demo_warehouse.copy() as url:
        terminal = CommandLine(home, url)
        terminal.run("keys", "new", "--out", home / "key.pem")
        terminal.run("ingest", "--site", "north", "--from", home / "files")
        with psycopg.connect(url) as connection:
            connection.execute(
                "INSERT INTO etl.export_job (site, group_id, kind, state, error, requested_at)"
                " VALUES ('epic', 'eEIjHLhL0123456789', 'bulk', 'failed', 'The site answered 500.', now())"
            )
        yield terminal


def _write_files(folder: Path) -> None:
    odd = {"coding": [{"system": LONG_SYSTEM, "code": LONG_CODE, "display": "a display of many words " * 8}]}
    files: dict[str, list[Any]] = {
        "Patient": [patient()],
        "Encounter": [encounter()],
        "Observation": [observation(), observation("odd", code=odd), observation("bad", valueQuantity={"value": "x"})],
    }
    folder.mkdir()
    for name, resources in files.items():
        lines = [orjson.dumps({"resourceType": name, **resource}) for resource in resources]
        (folder / f"{name}.ndjson").write_bytes(b"\n".join(lines) + b"\n")


def run(
    terminal: CommandLine, patched: pytest.MonkeyPatch, line: str, width: int | None
) -> tuple[str, list[output.Listing]]:
    """What a command writes to standard output, and the tables that it drew."""
    screen, drawn = Screen(is_terminal=width is not None), list[output.Listing]()
    with patched.context() as patch:
        for name, value in {**terminal.environment, "COLUMNS": str(width or 80), "TERM": "xterm"}.items():
            patch.setenv(name, value)
        for name in _DRAWING:
            real = getattr(output, name)
            patch.setattr(output, name, lambda *given, real=real: (drawn.append(given[1]), real(*given))[1])
        patch.chdir(terminal.home)
        patch.setattr(sys, "stdout", screen)
        patch.setattr(sys, "stderr", Screen(is_terminal=False))
        typer.main.get_command(app).main(line.format(home=terminal.home).split(), standalone_mode=False)
    return _ESCAPES.sub("", screen.getvalue()), drawn


def redrawn(listing: output.Listing, width: int | None) -> list[str]:
    """The lines of a command's table in a terminal of another width, or in a pipe."""
    stream = io.StringIO()
    options: dict[str, Any] = {} if width is None else {"width": width, "force_terminal": True}
    output.print_listing(Terminal(file=stream, color_system=None, highlight=False, **options), listing)
    return stream.getvalue().split("\n")


@pytest.mark.parametrize("line", WALK)
def test_nothing_that_matters_is_cut(north: CommandLine, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    text, drawn = run(north, monkeypatch, line, 80)
    assert drawn or line in _TEXT_ALONE, "it shows a table"
    assert "…" not in text
    assert_whole(drawn, text.split("\n"))
    for listing in drawn:
        for width in WIDTHS:
            assert_whole([listing], redrawn(listing, width))
        rows = redrawn(listing, None)[2 if listing.title else 0 :]
        assert len(rows) == len(listing.rows) + (listing.total is not None) + 2, "a line for each row"


def assert_whole(listings: list[output.Listing], lines: list[str]) -> None:
    """Each code, path, number and time stands in one line."""
    for listing in listings:
        for row in listing.rows:
            for column, value in zip(listing.columns, row, strict=True):
                for part in output._cells_lines(column, value) if column.kind != "text" else ():
                    assert any(part in shown for shown in lines), (column.key, part)


#: Sentences for people, and a document for programs.
_TEXT_ALONE = {"landing status", "landing prune --dry-run", "erase --list"}


@pytest.mark.parametrize("line", WALK)
def test_documents_are_read_by_programs(north: CommandLine, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    text, _ = run(north, monkeypatch, f"{line} --json", None)
    content = json.loads(text)
    assert _keys(content) - _documented(line) == set(), "docs/output.md lists the keys of each document"
    for value in _values(content):
        if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT", value):
            assert re.search(r"(Z|[+-]\d\d:\d\d)$", value), f"{value} has no zone"
        assert not (isinstance(value, str) and re.fullmatch(r"\d{1,3}(,\d{3})+|[\d.]+ %", value)), value
    if "--csv" not in _options(line):
        return
    text, _ = run(north, monkeypatch, f"{line} --csv", None)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not [cell for row in rows for cell in row if re.match(r"[=+@\t\r\n]|-(?![0-9.]+$)", cell)]


#: Maps by names of the data: types, tables, sites, codes.
_MAPS = {"resources", "rows", "vocabularies", "overlaps", "vanished", "taken", "left_out"}


def _keys(content: Any, path: str = "") -> set[str]:
    """`a.b[].c` for each key of a document; nothing of what is below a map."""
    if isinstance(content, list):
        return {key for item in content for key in _keys(item, f"{path}[]")}
    if not isinstance(content, dict):
        return set()
    found = set()
    for name, value in content.items():
        full = f"{path}.{name}".lstrip(".")
        found |= {full} | (set() if name in _MAPS else _keys(value, full))
    return found


def _documented(line: str) -> set[str]:
    """The keys in the row of the command in docs/output.md; `a.{b, c}` are two."""
    words = line.split(" --", maxsplit=1)[0]
    page = Path("docs/output.md").read_text(encoding="utf-8")
    (row,) = re.findall(
        rf"^## `{re.escape(_named(words))}`\n\n(?:[^-#].*\n\n)?((?:- .*\n(?:  .*\n)*)+)", page, re.MULTILINE
    )
    found: set[str] = set()
    for place, keys in re.findall(r"^- (?:in `(.*?)`: )?((?:.|\n  )*)", row, re.MULTILINE):
        names = re.findall(r"`(.+?)`", keys)
        found |= {f"{place}.{name}".lstrip(".") for name in names}
    return found


def _named(line: str) -> str:
    command: Any = typer.main.get_command(app)
    words = []
    for word in line.split():
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
        words.append(word)
    return " ".join(words)


def _values(content: Any) -> Iterator[Any]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _values(value)
    else:
        yield content


def _options(line: str) -> set[str]:
    command = typer.main.get_command(app)
    for word in line.split():
        command = getattr(command, "commands", {}).get(word, command)
    return {option for parameter in command.params for option in parameter.opts}


def test_a_code_that_is_a_formula_is_none_in_a_spreadsheet(north: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = run(north, monkeypatch, "report mapping --csv", None)
    assert f"'{LONG_CODE}" in text
    assert f"\n{LONG_CODE}" not in text


def test_there_is_one_component_of_tables() -> None:
    """No other module draws one, and each that shows one takes --json."""
    folder = Path(pipeline.__file__).parent / "commands"
    drawing, without = [], []
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if "Table" in names and path.name not in ("output.py", "terminal.py"):
            drawing.append(path.name)
        if "Listing" in names and not names & {"JsonOption", "as_json"} and path.name not in _PARTS:
            without.append(path.name)
    assert not drawing
    assert not without


#: They print for commands of other modules; `view run` writes ndjson.
_PARTS = {"output.py", "tables.py", "findings.py", "verify_deep.py", "view.py"}
