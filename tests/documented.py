"""Commands as pages of documentation show them: blocks marked `<!-- run -->`, by their heading."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

__all__ = ["commands_below"]

_PROJECT = Path(__file__).resolve().parents[1]
_RUN_BLOCK = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.DOTALL)


def commands_below(page: str, heading: str) -> list[list[str]]:
    """The arguments of each `epic-omop` in the marked blocks of a section; fails where there is none."""
    text = (_PROJECT / page).read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for block in _RUN_BLOCK.findall(section) for line in block.splitlines()]
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("epic-omop ")]
    assert found, f"{page} has no marked commands below {heading!r}"
    return found
