"""A page of search results: the resources as the server wrote them, and its issues. Sends nothing.

Specification: https://hl7.org/fhir/R4/http.html#search. Resources are cut out of the page without being decoded, so that
landing keeps their bytes: a decimal such as 1.10 stays one (https://hl7.org/fhir/R4/json.html#primitive).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from pipeline.core.errors import ProtocolError
from pipeline.fhir.lines import without_mark
from pipeline.fhir.operation_outcome import OPERATION_OUTCOME, Issue, parse_issues

__all__ = ["SearchIssue", "SearchPage", "as_line", "identity", "parse_page", "search_issues"]

_ENTRY_MODES = frozenset({"match", "include"})

# Outside of texts, white space means nothing; inside, a line feed cannot stand (RFC 8259, section 7).
_SPACE_OR_TEXT = re.compile(rb'("(?:[^"\\]|\\.)*+")|[ \t\r\n]++')

_T = TypeVar("_T")

Verdict = Literal["informational", "warning", "refused"]


@dataclass(frozen=True)
class SearchIssue:
    """One issue of an OperationOutcome: what it means for the result, and its code, Epic's number where it has one."""

    verdict: Verdict
    code: str


@dataclass(frozen=True)
class SearchPage:
    """Resources as (type, id, line), the issues that the server lists, and the address of the next page as it was given."""

    resources: tuple[tuple[str, str, bytes], ...]
    issues: tuple[SearchIssue, ...]
    #: OperationOutcomes that say more than that nothing was found, each one line.
    outcomes: tuple[bytes, ...]
    next_url: str | None


class _Identity(msgspec.Struct):
    resourceType: str  # noqa: N815 - FHIR's name
    id: str | None = None


class _Search(msgspec.Struct):
    mode: str | None = None


class _Entry(msgspec.Struct):
    resource: msgspec.Raw = msgspec.Raw(b"")  # empty: an entry without a resource
    search: _Search = msgspec.field(default_factory=_Search)


class _Link(msgspec.Struct):
    relation: str = ""
    url: str = ""


class _Bundle(msgspec.Struct):
    resourceType: str  # noqa: N815
    entry: list[_Entry] = []
    link: list[_Link] = []


# Built while the module is imported, by one thread: what msgspec needs to know of a Struct is filled in when its first
# decoder is built, and below 0.23 a second thread that decoded the same type meanwhile read it half filled and crashed.
_BUNDLE = msgspec.json.Decoder(_Bundle)
_IDENTITY = msgspec.json.Decoder(_Identity)
_ANYTHING = msgspec.json.Decoder(Any)


def parse_page(body: bytes, action: str) -> SearchPage:
    """The Bundle that answers a search. Raises ProtocolError for anything else; `action` says in it what was tried."""
    bundle = _decoded(without_mark(body), _BUNDLE, action)
    if bundle.resourceType != "Bundle":
        raise ProtocolError(f"{action}: the server answered with something other than a Bundle.")
    resources: list[tuple[str, str, bytes]] = []
    issues: list[SearchIssue] = []
    outcomes: list[bytes] = []
    for entry in bundle.entry:
        raw = bytes(entry.resource)
        if not raw:
            continue
        resource_type, resource_id = identity(raw, action)
        if resource_type == OPERATION_OUTCOME or entry.search.mode == "outcome":
            issues += (found := search_issues(raw, action))
            if any(issue.verdict != "informational" for issue in found):
                outcomes.append(as_line(raw))
        elif entry.search.mode is None or entry.search.mode in _ENTRY_MODES:
            if not resource_id:
                raise ProtocolError(f"{action}: the server's page holds a resource without an id.")
            resources.append((resource_type, resource_id, as_line(raw)))
    following = next((link.url for link in bundle.link if link.relation == "next" and link.url), None)
    return SearchPage(tuple(resources), tuple(issues), tuple(outcomes), following)


def identity(raw: bytes, action: str) -> tuple[str, str | None]:
    """(resource type, id) of a resource. Raises ProtocolError for what is none."""
    found = _decoded(raw, _IDENTITY, action)
    return found.resourceType, found.id


def search_issues(raw: bytes, action: str) -> tuple[SearchIssue, ...]:
    """The issues of an OperationOutcome (rule 13): each is informational, a warning, or refuses a part of the result.

    Raises ProtocolError for something else.
    """
    issues = parse_issues(_decoded(raw, _ANYTHING, action))
    if issues is None:
        raise _malformed(action)
    return tuple(SearchIssue(_verdict(issue), _shown_code(issue)) for issue in issues)


def _verdict(issue: Issue) -> Verdict:
    if issue.is_informational:
        return "informational"
    return "warning" if issue.severity == "warning" else "refused"


def _shown_code(issue: Issue) -> str:
    """Epic's number, else FHIR's issue type; only what looks like a code, as it is shown to people."""
    return next(iter((*issue.own_codes, issue.code or "unknown")))


def as_line(raw: bytes) -> bytes:
    """A resource as one line of NDJSON: white space between its parts goes where it is spread over lines."""
    raw = raw.strip()
    if b"\n" not in raw and b"\r" not in raw:
        return raw
    return _SPACE_OR_TEXT.sub(lambda found: found[1] or b"", raw)


def _decoded(body: bytes, decoder: msgspec.json.Decoder[_T], action: str) -> _T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _malformed(action) from None


def _malformed(action: str) -> ProtocolError:
    return ProtocolError(f"{action}: the server's answer has not the form that FHIR gives it.")
