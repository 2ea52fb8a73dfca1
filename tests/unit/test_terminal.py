"""Texts of others in a terminal: no markup, nothing that a terminal obeys, in whatever rich draws."""

from __future__ import annotations

import ast
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline
from pipeline.commands.findings import print_findings
from pipeline.commands.terminal import (
    Table,
    Terminal,
    Text,
    TextColumn,
    bold,
    document,
    lines,
    progress,
    styled,
    survive_any_encoding,
    words,
)
from pipeline.core.findings import Finding
from pipeline.core.logs import TextFormatter
from pipeline.core.visible_text import shown, shown_lines

#: What others may write → how it is shown.
EVIL = {
    "[red]": "[red]",
    "[/b]": "[/b]",
    "[/]": "[/]",
    "\\[red]": "\\[red]",
    "[link=https://evil.example]x[/link]": "[link=https://evil.example]x[/link]",
    "[@click=app.quit]x[/]": "[@click=app.quit]x[/]",
    ":skull:": ":skull:",
    "a\x1b[31mred": "a␛[31mred",
    "a\x1b]8;;https://evil.example\x07x": "a␛]8;;https://evil.example␇x",
    "\x07bell": "␇bell",
    "back\x08\x08": "back␈␈",
    "line\nforged": "line␊forged",
    "over\rwritten": "over␍written",
    "tab\tand\x00nul": "tab␉and␀nul",
    "\x7f\x9b31m": "␡<U+009B>31m",
    "\u202egpj.exe": "<U+202E>gpj.exe",
    "\u2066a\u2069": "<U+2066>a<U+2069>",
    "a\u2028b\x85c": "a<U+2028>b<U+0085>c",
    "zero\u200bwidth\ufeff": "zero<U+200B>width<U+FEFF>",
    "half \udcff of a pair": "half <U+DCFF> of a pair",
    "Größe 日本語 ✓": "Größe 日本語 ✓",
}

Draw = Callable[[Terminal, str], None]


def _in_table(console: Terminal, value: str) -> None:
    table = Table(value, "other", title=value, caption=value)
    table.add_row(value, Text(value))
    console.print(table)


def _in_bar(console: Terminal, value: str) -> None:
    with progress(console, TextColumn("{task.fields[detail]}"), transient=False) as bar:
        bar.add_task(value, total=1, detail=value)


def _in_status(console: Terminal, value: str) -> None:
    with console.status(value) as status:
        status.update(value)
        console.print(value)


DRAWN: dict[str, Draw] = {
    "message": lambda console, value: console.print(value),
    "message, wrapped": lambda console, value: console.print(value, style="yellow", soft_wrap=True),
    "message that asks for markup": lambda console, value: console.print(value, markup=True, emoji=True),
    "several objects": lambda console, value: console.print("a", value, [value]),
    "a text of rich's": lambda console, value: console.print(Text(value)),
    "rule": lambda console, value: console.rule(value),
    "log": lambda console, value: console.log(value),
    "words": lambda console, value: console.print(words("a ", bold(value), styled(value, "red"), value)),
    "lines": lambda console, value: console.print(lines([value, value])),
    "table": _in_table,
    "bar": _in_bar,
    "status": _in_status,
    "findings": lambda console, value: print_findings(console, [Finding(value, "failed", value, value)], value),
}


@pytest.mark.parametrize("value", EVIL, ids=ascii)
@pytest.mark.parametrize("drawn", DRAWN)
def test_no_value_is_markup_and_nothing_is_obeyed(drawn: str, value: str) -> None:
    stream = io.StringIO()
    DRAWN[drawn](Terminal(file=stream, width=500, color_system=None), value)
    written = stream.getvalue()
    assert not [letter for letter in written if letter != "\n" and letter in shown_away(written)]
    expected = EVIL[value]
    if drawn == "several objects":
        assert expected in written
    elif drawn in ("a text of rich's", "log", "rule"):
        # rich itself takes some control codes out of a Text, and folds white space of titles
        assert shown_lines("".join(written.split("\n"))) == "".join(written.split("\n"))
    else:
        assert expected in written


def shown_away(text: str) -> set[str]:
    """The characters of a text that `shown` would replace."""
    return {letter for letter in set(text) - {"\n"} if shown(letter) != letter}


def test_a_real_terminal_gets_styles_of_ours_alone() -> None:
    stream = io.StringIO()
    console = Terminal(file=stream, width=200, force_terminal=True, color_system="standard", no_color=False)
    console.print(words(styled("✗", "red"), " [green]a\x1b[32mb[/green]"), "[bold]c", highlight=False)
    assert stream.getvalue() == "\x1b[31m✗\x1b[0m [green]a␛[32mb[/green] [bold]c\n"


@pytest.mark.parametrize("value", EVIL, ids=ascii)
def test_a_log_line_stays_one_line(value: str) -> None:
    record = logging.LogRecord("pipeline.x", logging.WARNING, __file__, 1, "the site said %s", (value,), None)
    assert TextFormatter().format(record) == f"WARNING pipeline.x: the site said {EVIL[value]}"


def test_a_document_is_changed_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.StringIO):
        tty = False

        def isatty(self) -> bool:
            return self.tty

    for tty, expected in ((False, "a\x1b[31m\nb"), (True, "a␛[31m\nb")):
        stream = Stream()
        stream.tty = tty
        monkeypatch.setattr(sys, "stdout", stream)
        document("a\x1b[31m\nb")
        assert stream.getvalue() == expected


def test_a_terminal_without_our_letters_ends_no_command() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="iso-8859-1")
    survive_any_encoding(stream, io.StringIO())
    Terminal(file=stream, width=80).print("✓ ł")
    stream.flush()
    assert raw.getvalue() == b"\\u2713 \\u0142\n"


#: Modules of rich that write or that read markup; of the others (`box`, `filesize`) any module may take what it needs.
_WRITING = {"console", "progress", "status", "markup", "text", "table", "panel", "live", "prompt", "pretty", "logging"}


def _ways_around(source: str) -> list[str]:
    """Uses of rich, of typer's output or of `print` in a module, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rich":
            names = {node.module.partition(".")[2]} - {""} or {alias.name for alias in node.names}
            found += [f"{node.lineno}: rich.{name}" for name in names & (_WRITING | {"print"})]
        elif isinstance(node, ast.Import):
            found += [f"{node.lineno}: {alias.name}" for alias in node.names if alias.name.split(".")[0] == "rich"]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write", "sys.stderr.write"}:
                found.append(f"{node.lineno}: {called}")
    return found


def test_the_check_of_the_source_finds_what_it_looks_for() -> None:
    for line in ("from rich.console import Console", "from rich import print", "import rich.text", "typer.echo(a)"):
        assert _ways_around(line), line
    assert not _ways_around("from rich import filesize\nfrom rich.box import SIMPLE")


def test_there_is_one_way_to_the_terminal() -> None:
    root = Path(pipeline.__file__).parent
    around = {
        str(path.relative_to(root)): found
        for path in sorted(root.rglob("*.py"))
        if str(path.relative_to(root)) not in {"commands/terminal.py"}
        and (found := _ways_around(path.read_text(encoding="utf-8")))
    }
    assert not around, around
