"""The README's commands: those marked `<!-- run -->` are run as they stand, all others exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import CommandLine

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
PROGRAM = Path(sys.executable).with_name("epic-omop")
_RUN_BLOCK = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.DOTALL)


def _commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("epic-omop")]


def _mentioned() -> list[tuple[str, ...]]:
    """Every `epic-omop …` in the README, up to its first option or argument."""
    found = set()
    for text in re.findall(r"epic-omop ((?:[a-z-]+ ?)+)", README):
        found.add(tuple(text.split()))
    return sorted(found)


def test_the_marked_block_runs(database_url: str, tmp_path: Path) -> None:
    """The first command by the installed program, the others as every test runs them: in a tenth of its start."""
    shutil.copytree(PROJECT / "mappings", tmp_path / "mappings")
    terminal = CommandLine(tmp_path, database_url, {"EPIC_OMOP_HOME": str(tmp_path / "home")})
    (block,) = _RUN_BLOCK.findall(README)
    first, *others = _commands(block)
    assert len(others) > 10
    done = subprocess.run(
        [PROGRAM, *first[1:]],
        cwd=tmp_path,
        env=terminal.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), f"{first}: {done.stdout}{done.stderr}"
    for command in others:
        terminal.run(*command[1:])


@pytest.mark.parametrize("words", [words for words in _mentioned() if words[0] not in {"and", "status in the morning"}])
def test_every_command_that_is_mentioned_exists(words: tuple[str, ...]) -> None:
    from typer.main import get_command

    from pipeline.commands.cli import app

    group = get_command(app)
    commands = getattr(group, "commands", {})
    assert words[0] in commands, f"README mentions `epic-omop {' '.join(words)}`"
    sub = getattr(commands[words[0]], "commands", None)
    if sub is not None and len(words) > 1:
        assert words[1] in sub, f"README mentions `epic-omop {' '.join(words)}`"


def test_every_file_that_is_linked_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (PROJECT / link).exists()] == []


def test_every_setting_is_named() -> None:
    from pipeline.core.settings import SiteSettings

    hidden = {"name", "test_mode"}
    assert [name for name in SiteSettings.model_fields if name not in hidden and name not in README] == []
