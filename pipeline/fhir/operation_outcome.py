"""Reading FHIR's OperationOutcome: the one parser of its issues.

What an issue means for an export, a page of results or a refused request is decided where those are handled; which of
its words may be shown is decided in `extract/http/redaction.py`.

Source: https://hl7.org/fhir/R4/operationoutcome.html; Epic's own codes in `details.coding`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

__all__ = ["NO_RESULTS", "OPERATION_OUTCOME", "Issue", "parse_issues"]

OPERATION_OUTCOME = "OperationOutcome"

#: Epic's number for "nothing found": a search that succeeded (rule 13).
NO_RESULTS = "4101"
_INFORMATIONAL = frozenset({"information", "success"})

_WORD = re.compile(r"[a-z][a-z-]{0,39}")
_OWN_CODE = re.compile(r"[A-Za-z0-9_.-]{1,40}")


@dataclass(frozen=True)
class Issue:
    """One issue. `severity` and `code` are words of FHIR's value sets, or empty where the server wrote something else."""

    severity: str
    code: str
    #: Codes of `details.coding` that look like codes, in their order.
    own_codes: tuple[str, ...] = ()
    #: `details.text` and `diagnostics` as the server wrote them: they may quote a patient's data and are never shown so.
    texts: tuple[str, ...] = field(default=(), repr=False)

    @property
    def is_informational(self) -> bool:
        """Whether nothing is missing because of it: also "nothing found", whatever its severity."""
        return self.severity in _INFORMATIONAL or NO_RESULTS in self.own_codes


def parse_issues(outcome: object) -> tuple[Issue, ...] | None:
    """The issues of a decoded OperationOutcome, none where it lists none; None where it does not have FHIR's form."""
    entries = outcome.get("issue", []) if isinstance(outcome, dict) else None
    if not isinstance(entries, list):
        return None
    return tuple(_issue(entry if isinstance(entry, dict) else {}) for entry in entries)


def _issue(entry: dict[str, Any]) -> Issue:
    details = entry.get("details")
    details = details if isinstance(details, dict) else {}
    codings = details.get("coding")
    codes = (
        coding.get("code") for coding in (codings if isinstance(codings, list) else ()) if isinstance(coding, dict)
    )
    texts = (details.get("text"), entry.get("diagnostics"))
    return Issue(
        _word(entry.get("severity")),
        _word(entry.get("code")),
        tuple(code for code in codes if isinstance(code, str) and _OWN_CODE.fullmatch(code)),
        tuple(text for text in texts if isinstance(text, str)),
    )


def _word(value: object) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""
