"""The error and outcome files of an export: what the site says besides the data, counted by weight.

Only codes are read: the texts of an OperationOutcome may quote a resource.

- informational: severity `information` or `success`, or Epic's 4101 (the search found nothing), whatever its severity;
- fatal: severity `fatal`, or an `error` of a kind that is not about one resource (access, limits, the server itself):
  the export may lack whole types;
- resource: every other issue. Something about single resources; a line that cannot be read counts here as well.

Source: https://hl7.org/fhir/R4/valueset-issue-type.html, Epic's own codes in `details.coding`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from pipeline.core.files import landing_errors
from pipeline.fhir.lines import is_blank, is_erased
from pipeline.landing.reading import open_landed
from pipeline.landing.store import LandedFile

__all__ = ["SiteMessage", "site_messages"]

Weight = Literal["informational", "resource", "fatal"]

_WORD = re.compile(r"[a-z][a-z-]{0,39}")
_SITE_CODE = re.compile(r"\d{1,8}")

_OF_THE_WHOLE = frozenset(
    {
        *("security", "login", "unknown", "expired", "forbidden", "suppressed"),
        *("throttled", "too-costly", "not-supported"),
        *("transient", "lock-error", "no-store", "exception", "timeout", "incomplete"),
    }
)
_NOTHING_FOUND = "4101"


@dataclass(frozen=True, order=True)
class SiteMessage:
    """One kind of issue. `site_code` is Epic's own code, or empty."""

    weight: Weight
    severity: str
    code: str
    site_code: str


def site_messages(files: Iterable[LandedFile]) -> Counter[SiteMessage]:
    """All issues of the files, counted. Raises LandingError."""
    return Counter(message for file in files for message in _messages(file))


def _messages(file: LandedFile) -> Iterator[SiteMessage]:
    with landing_errors(file.path), open_landed(file.path) as stream:
        for line in stream:
            if not is_blank(line) and not is_erased(line.rstrip(b"\r\n")):
                yield from _of_line(line.removeprefix(b"\xef\xbb\xbf"))


def _of_line(line: bytes) -> Iterator[SiteMessage]:
    try:
        outcome = orjson.loads(line)
    except orjson.JSONDecodeError:
        outcome = None
    issues = outcome.get("issue") if isinstance(outcome, dict) else None
    if not isinstance(issues, list) or not issues:
        yield SiteMessage("resource", "error", "unreadable", "")
        return
    for issue in issues:
        yield _of_issue(issue if isinstance(issue, dict) else {})


def _of_issue(issue: dict[str, Any]) -> SiteMessage:
    severity, code, site_code = _word(issue.get("severity")), _word(issue.get("code")), _site_code(issue)
    return SiteMessage(_weight(severity, code, site_code), severity, code, site_code)


def _weight(severity: str, code: str, site_code: str) -> Weight:
    if severity in ("information", "success") or site_code == _NOTHING_FOUND:
        return "informational"
    if severity == "fatal" or (severity == "error" and code in _OF_THE_WHOLE):
        return "fatal"
    return "resource"


def _word(value: object) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else "other"


def _site_code(issue: dict[str, Any]) -> str:
    details = issue.get("details")
    codings = details.get("coding") if isinstance(details, dict) else None
    for coding in codings if isinstance(codings, list) else ():
        code = coding.get("code") if isinstance(coding, dict) else None
        if isinstance(code, str) and _SITE_CODE.fullmatch(code):
            return code
    return ""
