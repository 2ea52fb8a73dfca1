"""The table of a check, for people."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.commands.terminal import Table, Terminal, styled, words
from pipeline.core.findings import Finding, State

__all__ = ["print_findings"]

_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", "not checked": "dim"}


def print_findings(console: Terminal, findings: Sequence[Finding], title: str) -> None:
    """A row for each; what to do is below what was found."""
    table = Table("what", "state", "found, and what to do", title=title, title_justify="left")
    table.columns[1].no_wrap = True
    for finding in findings:
        text = words(finding.found)
        if finding.advice:
            text.append("\n").append_text(styled(f"→ {finding.advice}", "bold" if finding.state == "failed" else ""))
        table.add_row(finding.what, styled(finding.state, _STYLES[finding.state]), text)
    console.print(table)
