"""One line of a check: what was looked at, how it stands, what was found, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "State", "any_failed"]

#: `not checked` is not a failure: what could not be looked at is reported as such.
State = Literal["ok", "warning", "failed", "not checked"]


@dataclass(frozen=True)
class Finding:
    what: str
    state: State
    found: str
    advice: str = ""


def any_failed(findings: Iterable[Finding]) -> bool:
    return any(finding.state == "failed" for finding in findings)
