"""How docstrings of commands become their `--help`: lines of a paragraph are joined, so that it fills the terminal, whatever
its width. Typer joins those of the first paragraph only. Indented lines stay as they are: examples, one a line. And flags
are shown as flags: Typer writes a type behind them, as if they took a value."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["CommandGroup", "fill_help", "fill_paragraphs"]


def fill_help(app: typer.Typer) -> None:
    """Take the texts of all commands and groups of the program from their docstrings. Call it when all are registered."""
    if not (isinstance(app.info.cls, type) and issubclass(app.info.cls, CommandGroup)):
        app.info.cls = CommandGroup
    for command in app.registered_commands:
        command.cls = _Command
        if text := command.help or (command.callback and command.callback.__doc__):
            command.help = fill_paragraphs(text)
    for group in app.registered_groups:
        if group.typer_instance:
            if isinstance(group.typer_instance.info.help, str):
                group.typer_instance.info.help = fill_paragraphs(group.typer_instance.info.help)
            fill_help(group.typer_instance)


def _flags_as_flags(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _flags_as_flags(super().get_params(ctx))


class CommandGroup(TyperGroup):
    """Of commands; one that reads its arguments in a way of its own is made from it."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _flags_as_flags(super().get_params(ctx))


def fill_paragraphs(text: str) -> str:
    """The text, each paragraph in one line; lines that are indented, and those after them, begin a line of their own."""
    return "\n\n".join(_filled(paragraph) for paragraph in inspect.cleandoc(text).split("\n\n"))


def _filled(paragraph: str) -> str:
    lines = paragraph.split("\n")
    return lines[0] + "".join(
        f"\n{line}" if line.startswith(" ") or former.startswith(" ") else f" {line}"
        for former, line in pairwise(lines)
    )
