"""The table of a check, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.findings import Finding, State

__all__ = ["print_findings"]

_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", "not checked": "dim"}


def print_findings(console: Console, findings: Sequence[Finding], title: str) -> None:
    """A row for each; what to do is below what was found."""
    table = Table("what", "state", "found, and what to do", title=title, title_justify="left")
    table.columns[1].no_wrap = True
    for finding in findings:
        told = Text(finding.found)
        if finding.advice:
            told.append(f"\n→ {finding.advice}", style="bold" if finding.state == "failed" else "")
        table.add_row(finding.what, Text(finding.state, style=_STYLES[finding.state]), told)
    console.print(table)
