"""`--help` of every command: paragraphs fill the terminal, and examples are commands that the program takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
import typer
from typer.main import get_command

from pipeline.commands.cli import app
from pipeline.commands.help_texts import fill_paragraphs

_EXAMPLES = re.compile(r"^ *Examples?:", re.MULTILINE)
_COMMAND = re.compile(r"\bepic-omop ([^`|>\n]*)")


def _commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], typer.core.TyperCommand]]:
    yield path, command  # type: ignore[misc]
    for name, sub in getattr(command, "commands", {}).items():
        yield from _commands(sub, (*path, name))


_ALL = dict(_commands(get_command(app)))


def test_lines_of_a_paragraph_are_joined_and_examples_are_not() -> None:
    text = """First, on
    two lines.

    Second, on
    two lines as well.

      epic-omop one
      epic-omop two
    """
    assert fill_paragraphs(text) == (
        "First, on two lines.\n\nSecond, on two lines as well.\n\n  epic-omop one\n  epic-omop two"
    )


@pytest.mark.parametrize("path", _ALL, ids=" ".join)
def test_no_line_of_a_help_text_ends_early(path: tuple[str, ...]) -> None:
    """Typer shows the line ends of all paragraphs but the first: with them a text is broken at odd places."""
    for paragraph in (_ALL[path].help or "").split("\n\n"):
        lines = paragraph.split("\n")
        assert all(line.startswith(" ") for line in lines[1:]), lines


_LEAVES = [path for path, command in _ALL.items() if not hasattr(command, "commands") and not command.hidden]


@pytest.mark.parametrize("path", _LEAVES, ids=" ".join)
def test_help_has_an_example(path: tuple[str, ...]) -> None:
    command = _ALL[path]
    _, *examples = _EXAMPLES.split(f"{command.help or ''}\n\n{command.epilog or ''}")
    assert any(map(_COMMAND.search, examples)), f"epic-omop {' '.join(path)} --help shows no example"


@pytest.mark.parametrize("path", _ALL, ids=" ".join)
def test_flags_are_flags(path: tuple[str, ...]) -> None:
    """In the texts a flag takes no value, and what takes one says so."""
    command = _ALL[path]
    text = command.get_help(command.make_context("epic-omop", [], resilient_parsing=True))
    assert "<bool>" not in text
    assert "BOOLEAN" not in text
    for parameter in command.get_params(typer.Context(command)):
        if getattr(parameter, "is_flag", False):
            assert parameter.type_descriptor.annotation is bool, parameter.name


@pytest.mark.parametrize(
    "path", [path for path, command in _ALL.items() if _EXAMPLES.search(command.help or "")], ids=" ".join
)
def test_examples_are_commands_that_the_program_takes(path: tuple[str, ...]) -> None:
    *_, examples_of_text = _EXAMPLES.split(_ALL[path].help or "")
    examples = [shlex.split(found) for found in _COMMAND.findall(examples_of_text)]
    assert examples
    for words in examples:
        command = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        command.make_context("epic-omop", words)
