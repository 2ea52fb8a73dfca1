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
from typing import Literal

import orjson

from pipeline.core.files import landing_errors
from pipeline.fhir.lines import is_blank, is_erased, without_mark
from pipeline.fhir.operation_outcome import Issue, parse_issues
from pipeline.landing.reading import open_landed
from pipeline.landing.store import LandedFile

__all__ = ["SiteMessage", "site_messages"]

Weight = Literal["informational", "resource", "fatal"]

_SITE_CODE = re.compile(r"\d{1,8}")

_OF_THE_WHOLE = frozenset(
    {
        *("security", "login", "unknown", "expired", "forbidden", "suppressed"),
        *("throttled", "too-costly", "not-supported"),
        *("transient", "lock-error", "no-store", "exception", "timeout", "incomplete"),
    }
)


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
                yield from _of_line(without_mark(line))


def _of_line(line: bytes) -> Iterator[SiteMessage]:
    try:
        issues = parse_issues(orjson.loads(line))
    except orjson.JSONDecodeError:
        issues = None
    if not issues:
        yield SiteMessage("resource", "error", "unreadable", "")
        return
    for issue in issues:
        site_code = next((code for code in issue.own_codes if _SITE_CODE.fullmatch(code)), "")
        yield SiteMessage(_weight(issue), issue.severity or "other", issue.code or "other", site_code)


def _weight(issue: Issue) -> Weight:
    if issue.is_informational:
        return "informational"
    if issue.severity == "fatal" or (issue.severity == "error" and issue.code in _OF_THE_WHOLE):
        return "fatal"
    return "resource"
