"""Whatever a service answers is read, or refused with words: every part of a right answer is replaced by each kind of value."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.core.clock import ManualClock
from pipeline.core.errors import EpicOmopError
from pipeline.core.resolver_settings import ResolverSettings
from pipeline.core.settings import SiteSettings
from pipeline.extract.terminology.fhir_server import FhirServer
from pipeline.extract.terminology.omophub import OmopHub
from pipeline.extract.terminology.service import open_connection
from pipeline.warehouse.resolver_cache import AskedCode
from tests.terminology_services import Reply, Seen, Services, resolution, running_services

CODE = AskedCode("https://hospital.example.org/codes", "exact")
OTHERS: tuple[Any, ...] = (None, True, -1, 0, 2**40, 1.5, "x", "", [], {}, [[]], [{}], {"a": [1]}, ["x"])


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ():
        yield from places(document[key], (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    whole = copy.deepcopy(document)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


@pytest.mark.parametrize("kind", ["omophub", "$translate", "$lookup"])
def test_an_answer_of_another_form_is_refused_or_read(kind):
    with running_services() as services:
        services.omophub = {CODE.key: resolution("EXACT", 31967, value_as_concept={"concept_id": 9})}
        services.translations = {CODE.key: [("equivalent", "31967")]}
        services.concepts = {"31967": ("", ["12", "13"])}
        rights: list[tuple[str, Any]] = []
        ask(services, kind, lambda seen, reply: rights.append((seen.path, reply.body)) or reply)
        right = next(body for path, body in rights if kind in path or kind == "omophub")
        for path in places(right):
            for value in OTHERS:
                wrong = changed(right, path, value)
                of_kind = kind if kind != "omophub" else "batch"
                try:
                    found = ask(
                        services,
                        kind,
                        lambda seen, reply, w=wrong, k=of_kind: Reply(200, w) if k in seen.path else reply,
                    )
                except EpicOmopError:
                    continue
                assert all(
                    isinstance(target, int) and not isinstance(target, bool) and 0 < target < 2**31
                    for answer in found
                    for target, _ in answer.targets
                ), (path, value)


def ask(services: Services, kind: str, change: Any) -> Any:
    own = services.answer

    def answer(seen: Seen) -> Reply:
        return change(seen, type(services).answer(services, seen))

    services.answer = answer  # type: ignore[method-assign]
    try:
        url = services.omophub_url if kind == "omophub" else services.fhir_url
        settings = ResolverSettings(
            kind="omophub" if kind == "omophub" else "fhir", url=url, api_key_env="RESOLVER_KEY_OF_NOTHING"
        ).model_copy(update={"api_key_env": None})
        clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
        with open_connection(SiteSettings(name="one", test_mode=True), settings, clock) as connection:
            service = OmopHub(connection) if kind == "omophub" else FhirServer(connection, lambda _: set())
            return service.ask([CODE]).answers
    finally:
        services.answer = own  # type: ignore[method-assign]
