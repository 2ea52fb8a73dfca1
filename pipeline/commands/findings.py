"""The table of a check, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.commands.output import Column, Listing, print_json, print_listing
from pipeline.commands.terminal import Terminal
from pipeline.core.findings import Finding

__all__ = ["print_findings"]

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "not checked": "dim"}


def print_findings(console: Terminal, findings: Sequence[Finding], title: str, *, as_json: bool = False) -> None:
    """A row for each; what to do is below what was found. As JSON the two are apart."""
    if as_json:
        keys = ("what", "state", "found", "advice")
        print_json([{key: getattr(finding, key) or None for key in keys} for finding in findings])
        return
    columns = (
        Column("what", "what"),
        Column("state", "state", "code", _STYLES),
        Column("found", "found, and what to do"),
    )
    listing = Listing(title, columns)
    for finding in findings:
        advice = [f"→ {finding.advice}"] if finding.advice else []
        listing.add(finding.what, finding.state, [finding.found, *advice])
    print_listing(console, listing)
