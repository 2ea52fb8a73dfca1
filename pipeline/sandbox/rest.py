"""Reads and searches of the simulated Epic: `GET /{type}/{id}` and `GET /{type}?patient=…`, with Epic's habits.

A search needs a patient (or `_id`), of Observation also category or code: else 59108. Pages are Bundles whose `next`
link is opaque. Nothing found is a Bundle with an OperationOutcome of code 4101. What is searched is in `rest_index.py`.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.sandbox.config import SandboxConfig
from pipeline.sandbox.exports import ExportDesk
from pipeline.sandbox.responses import FhirRefusal, epic_issue
from pipeline.sandbox.rest_index import Found, RestIndexes
from pipeline.sandbox.sources import EXPORTED_TYPES
from pipeline.sandbox.tokens import AccessToken

__all__ = ["RestDesk", "rest_routes"]

_JSON = "application/fhir+json"
_NEXT = "sessionID"
#: Pages that wait to be fetched; the oldest are forgotten, as Epic forgets them after a while.
_MOST_SESSIONS = 10_000
_KNOWN = ("patient", "subject", "_id", "category", "code", "_count", "_lastUpdated", _NEXT)


@dataclass(frozen=True)
class _Session:
    """What is left of a search's results, for the client that made it."""

    client_id: str
    resource_type: str
    found: Sequence[Found]
    count: int


class RestDesk:
    """Answers reads and searches. Thread-safe: each request is answered in a thread of its own."""

    def __init__(self, config: SandboxConfig, desk: ExportDesk) -> None:
        self._config = config
        self._indexes = RestIndexes(config, desk)
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, token: AccessToken, resource_type: str, resource_id: str) -> bytes:
        _check_scope(token, "r", resource_type)
        found = self._indexes.current().by_id.get((resource_type, resource_id))
        if found is None:
            raise FhirRefusal(404, "not-found", f"No {resource_type} has this id.", epic_code="4102")
        return found.line

    def search(self, token: AccessToken, resource_type: str, parameters: Sequence[tuple[str, str]], url: str) -> bytes:
        """The first page. `url` is the type's address, on which the `next` link is built."""
        _check_scope(token, "s", resource_type)
        given = dict(parameters)
        issues = [
            epic_issue("warning", "not-supported", "59109", f"{name} is not a known parameter and was ignored.")
            for name in given
            if name not in _KNOWN or (name == "_lastUpdated" and not self._config.knows_last_updated)
        ]
        found = self._find(resource_type, parameters, given)
        if not found:
            issues.append(epic_issue("warning", "processing", "4101"))
        count = min(_whole_number(given.get("_count", "")), self._config.entries_per_page)
        return self._page(_Session(token.client_id, resource_type, found, count), url, issues)

    def next_page(self, token: AccessToken, resource_type: str, session_id: str, url: str) -> bytes:
        """A further page; it may be asked for again."""
        session = self._sessions.get(session_id)
        if session is None or (session.client_id, session.resource_type) != (token.client_id, resource_type):
            raise FhirRefusal(400, "invalid", "The session is unknown or has ended.", epic_code="59100")
        return self._page(session, url, [])

    def _find(self, resource_type: str, parameters: Sequence[tuple[str, str]], given: dict[str, str]) -> list[Found]:
        index = self._indexes.current()
        patient = (given.get("patient") or given.get("subject") or "").removeprefix("Patient/")
        if given.get("_id"):
            one = index.by_id.get((resource_type, given["_id"]))
            return [one] if one else []
        if not patient:
            raise FhirRefusal(400, "required", "Must have either patient or _id.", epic_code="59108")
        criteria = _any_of(given.get("category")), _any_of(given.get("code"))
        if resource_type == "Observation":
            self._check_observation(*criteria)
        since = _since(parameters) if self._config.knows_last_updated else None
        return [
            found
            for found in index.search(resource_type, patient)
            if all(
                not asked or asked & has for asked, has in zip(criteria, (found.categories, found.codes), strict=True)
            )
            and (since is None or found.updated >= since)
        ]

    def _check_observation(self, categories: frozenset[str], codes: frozenset[str]) -> None:
        if not categories and not codes:
            raise FhirRefusal(400, "required", "Must have either code or category.", epic_code="59108")
        if unknown := sorted(categories - self._config.observation_categories):
            raise FhirRefusal(400, "value", f"The category {unknown[0]} is not supported.", epic_code="59100")

    def _page(self, session: _Session, url: str, issues: list[dict[str, Any]]) -> bytes:
        """A Bundle by hand: the resources' bytes stay as they are in the export."""
        shown, rest = session.found[: session.count], session.found[session.count :]
        links = [{"relation": "self", "url": url}]
        if rest:
            following = _Session(session.client_id, session.resource_type, rest, session.count)
            links.append({"relation": "next", "url": f"{url}?{_NEXT}={self._keep(following)}"})
        entries = [
            b'{"fullUrl":%s,"resource":%s,"search":{"mode":"match"}}' % (orjson.dumps(f"{url}/{found.id}"), found.line)
            for found in shown
        ]
        if issues:
            outcome = {"resourceType": "OperationOutcome", "issue": issues}
            entries.append(orjson.dumps({"resource": outcome, "search": {"mode": "outcome"}}))
        return b'{"resourceType":"Bundle","type":"searchset","total":%d,"link":%s,"entry":[%s]}' % (
            len(session.found),
            orjson.dumps(links),
            b",".join(entries),
        )

    def _keep(self, session: _Session) -> str:
        """An id with characters that a client must not touch: `%2B` and `+` are not the same."""
        session_id = f"{secrets.token_hex(12)}-a%2Bb%2F~c%3D%3D"
        with self._lock:
            self._sessions[session_id] = session
            if len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return session_id


def rest_routes(base: str, desk: RestDesk, authorized: Callable[[Request], AccessToken]) -> list[Route]:
    """Routes of reads and searches below `base`. `authorized` gives a request's token, or refuses it."""

    def read(request: Request) -> Response:
        path = request.path_params
        _check_type(path["type"])
        token = authorized(request)
        return Response(desk.read(token, path["type"], path["id"]), media_type=_JSON)

    def search(request: Request) -> Response:
        resource_type = request.path_params["type"]
        _check_type(resource_type)
        token = authorized(request)
        url = str(request.url.replace(query=""))
        session = _raw_parameter(request, _NEXT)
        if session is not None:
            return Response(desk.next_page(token, resource_type, session, url), media_type=_JSON)
        return Response(desk.search(token, resource_type, request.query_params.multi_items(), url), media_type=_JSON)

    return [Route(base + "/{type}/{id}", read), Route(base + "/{type}", search)]


def _raw_parameter(request: Request, name: str) -> str | None:
    """A parameter as it stands in the address, not decoded: an opaque link must come back unchanged."""
    for part in request.url.query.split("&"):
        key, _, value = part.partition("=")
        if key == name:
            return value
    return None


def _check_type(resource_type: str) -> None:
    if resource_type not in EXPORTED_TYPES:
        raise FhirRefusal(404, "not-found", "There is no such resource type here.")


def _check_scope(token: AccessToken, permission: str, resource_type: str) -> None:
    if not token.may(permission, resource_type):
        raise FhirRefusal(403, "forbidden", f"The client's scopes do not cover this use of {resource_type}.")


def _any_of(value: str | None) -> frozenset[str]:
    """The codes of a token parameter, whatever system they name."""
    return frozenset(part.rpartition("|")[2] for part in (value or "").split(",") if part)


def _whole_number(value: str) -> int:
    return int(value) if value.isdigit() and int(value) > 0 else 10_000


def _since(parameters: Sequence[tuple[str, str]]) -> datetime | None:
    """The lower bound of `_lastUpdated=ge…`; other comparisons are not simulated."""
    for name, value in parameters:
        if name == "_lastUpdated":
            try:
                return datetime.fromisoformat(value.removeprefix("ge")) if value.startswith("ge") else None
            except ValueError:
                raise FhirRefusal(400, "value", "_lastUpdated is not a valid instant.", epic_code="59100") from None
    return None
