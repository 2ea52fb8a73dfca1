"""Reads and searches, one HTTP exchange at a time, within the site's pace. Keeps nothing; knows no patient list.

A read gives one resource, a search its pages one after the other: `next` is followed exactly as it was given, and only
within the allow-listed origins (rule 14; the transport checks each address). Retries are the transport's.
"""

from __future__ import annotations

import re
import urllib.parse
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

from pipeline.core.errors import ProtocolError, RemoteRefused
from pipeline.extract.http.rate_limiter import RateLimiter
from pipeline.extract.http.transport import RemoteRequest, Response
from pipeline.extract.smart.session import EpicSession
from pipeline.fhir.lines import without_mark
from pipeline.fhir.operation_outcome import OPERATION_OUTCOME
from pipeline.fhir.search_page import SearchPage, as_line, identity, parse_page, search_issues

__all__ = ["RestClient", "SearchRefused", "is_readable_id"]

_FHIR_JSON = "application/fhir+json"

#: Limits of the security list: a page this large or a search this long is an error, not a result.
_MAX_PAGE_BYTES = 64 << 20
_MAX_PAGES = 10_000

#: FHIR's characters of an id, at Epic's lengths (rule 12); `.` and `..` would change the address.
_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9.\-_~]{1,256}")

_ADVICE = {
    403: "Check that the type's read and search APIs are registered for the app: `.read` does not include `.search`.",
}


class SearchRefused(RemoteRefused):
    """The server refuses a search. `codes`: Epic's numbers or FHIR's issue types, else the HTTP status (rule 13)."""

    def __init__(self, answer: Response) -> None:
        error = answer.error()
        super().__init__(error.message, error.advice, status=answer.status)
        try:
            codes = tuple(issue.code for issue in search_issues(answer.body, answer.request.action))
        except ProtocolError:  # a gateway's page
            codes = ()
        self.codes = codes or (f"HTTP {answer.status}",)


def is_readable_id(resource_id: str) -> bool:
    """Whether an id may become part of an address."""
    return _ID.fullmatch(resource_id) is not None


@dataclass(frozen=True)
class RestClient:
    """Thread-safe: one for all workers of a site."""

    session: EpicSession
    rate_limiter: RateLimiter

    def read(self, resource_type: str, resource_id: str) -> bytes:
        """A resource by its id, as one line of NDJSON; a Binary that comes as it is becomes a Binary resource.

        Raises RemoteRefused (403, 404, 410 and the like), ProtocolError for another resource than the one asked for,
        UnsafeRemote for one that is larger than the site's `max_line_bytes`, RemoteUnavailable after the last attempt.
        """
        if not is_readable_id(resource_id):
            raise ProtocolError(f"A {resource_type} has an id that cannot be part of an address.")
        request = RemoteRequest(
            f"Reading a {resource_type} of site {self.session.site.name}",
            f"{self._base}/{resource_type}/{resource_id}",
            headers={"Accept": _FHIR_JSON},
            tokens=self.session.tokens,
            max_bytes=self.session.site.max_line_bytes,
            advice=_ADVICE,
            event="read",
            resource_type=resource_type,
        )
        self.rate_limiter.wait()
        answer = self.session.transport.fetch(request)
        line = as_line(without_mark(answer.body))
        if resource_type == "Binary" and not _is_json(answer):
            return _binary(resource_id, answer)
        found = identity(line, request.action)
        if found[0] == OPERATION_OUTCOME:
            raise RemoteRefused(
                f"{request.action}: the server answered with an OperationOutcome.", status=answer.status
            )
        if found != (resource_type, resource_id):
            raise ProtocolError(f"{request.action}: the server answered with another resource.")
        return line

    def search(self, resource_type: str, parameters: Sequence[tuple[str, str]]) -> Iterator[SearchPage]:
        """All pages of a search.

        Raises SearchRefused, ProtocolError (no Bundle, or links that lead in a circle), UnsafeRemote for a link to
        another host, RemoteUnavailable after the last attempt.
        """
        action = f"Searching {resource_type} of a patient of site {self.session.site.name}"
        url = f"{self._base}/{resource_type}?{urllib.parse.urlencode(parameters)}"
        seen: set[str] = set()
        while url not in seen:
            seen.add(url)
            if len(seen) > _MAX_PAGES:
                raise ProtocolError(f"{action}: more than {_MAX_PAGES} pages.")
            page = self._page(action, resource_type, url)
            yield page
            if page.next_url is None:
                return
            absolute = urllib.parse.urlsplit(page.next_url).scheme
            url = page.next_url if absolute else urllib.parse.urljoin(url, page.next_url)
        raise ProtocolError(f"{action}: the links of its pages lead in a circle.")

    def _page(self, action: str, resource_type: str, url: str) -> SearchPage:
        request = RemoteRequest(
            action,
            url,
            headers={"Accept": _FHIR_JSON},
            tokens=self.session.tokens,
            max_bytes=_MAX_PAGE_BYTES,
            advice=_ADVICE,
            event="search",
            resource_type=resource_type,
        )
        transport = self.session.transport

        def once() -> Response:
            answer = transport.send(request)
            if answer.is_transient or answer.status == 401:
                raise answer.error()
            return answer

        self.rate_limiter.wait()
        answer = transport.retrying(once)
        if answer.status >= 300:
            raise SearchRefused(answer)
        return parse_page(answer.body, action)

    @property
    def _base(self) -> str:
        return self.session.site.fhir_url or ""


def _is_json(answer: Response) -> bool:
    return "json" in answer.headers.get("content-type", "").partition(";")[0]


def _binary(resource_id: str, answer: Response) -> bytes:
    content_type = answer.headers.get("content-type", "application/octet-stream")
    data = b64encode(answer.body).decode()
    return orjson.dumps({"resourceType": "Binary", "id": resource_id, "contentType": content_type, "data": data})
