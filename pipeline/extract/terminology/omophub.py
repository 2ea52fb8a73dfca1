"""OMOPHub's Concept Resolver: `POST fhir/resolve/batch`, as the package `omophub` 1.9 (MIT) and its documentation have it.

It falls back to a semantic search. Such a result, and every kind that is not known to be exact, is a suggestion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.extract.terminology.service import Replies, ServiceConnection, check_release, release_name
from pipeline.warehouse.resolver_cache import AnswerStatus, AskedCode, ResolverAnswer

__all__ = ["OmopHub"]

#: `mapping_type` of a code whose own concept is Standard, or leads to one by `Maps to`.
_EXACT = frozenset({"direct", "mapped"})
#: `error.code` of a coding that the service has no concept for; others are failures, which are asked again.
_UNKNOWN = frozenset({"concept_not_found", "unknown_system", "vocabulary_restricted"})


class OmopHub:
    """100 codings a request: the most that it takes."""

    batch = 100

    def __init__(self, connection: ServiceConnection) -> None:
        self._connection = connection

    def ask(self, codes: Sequence[AskedCode]) -> Replies:
        settings = self._connection.settings
        headers = {"X-Vocab-Version": settings.release} if settings.release else {}
        answer = self._connection.post(
            "fhir/resolve/batch", {"codings": [self._coding(code) for code in codes]}, **headers
        )
        if answer.status != 200:
            raise answer.error()
        document = answer.json()
        meta = document.get("meta")
        release = release_name(self._connection, meta.get("vocab_release") if isinstance(meta, dict) else None)
        check_release(self._connection, release, must_be_named=False)
        data = document.get("data", document)
        results = data.get("results") if isinstance(data, dict) else None
        if not isinstance(results, list) or len(results) != len(codes):
            raise self._connection.unreadable(f"not one result for each of {len(codes)} codings")
        read = [self._read(code, result) for code, result in zip(codes, results, strict=True)]
        return Replies(tuple(one for one in read if one is not None), release or settings.release or "")

    def _coding(self, code: AskedCode) -> dict[str, str]:
        coding = {"system": code.system, "code": code.code}
        if self._connection.settings.send_display and code.display:
            coding["display"] = code.display
        return coding

    def _read(self, code: AskedCode, result: Any) -> ResolverAnswer | None:
        """The answer about one coding; None where the service failed to give one."""
        if not isinstance(result, dict):
            raise self._connection.unreadable("a result is not an object")
        given = result.get("input")
        if isinstance(given, dict) and (given.get("code"), given.get("system")) != (code.code, code.system):
            raise self._connection.unreadable("its results are about other codings than were asked for")
        error, resolution = result.get("error"), result.get("resolution")
        if isinstance(error, dict):
            is_unknown = str(error.get("code")) in _UNKNOWN
            return ResolverAnswer(code.system, code.code, "none") if is_unknown else None
        if not isinstance(resolution, dict):
            raise self._connection.unreadable("a result has neither a resolution nor an error")
        target = self._concept_id(resolution, "standard_concept")
        if not target:
            return ResolverAnswer(code.system, code.code, "none")
        value = self._concept_id(resolution, "value_as_concept")
        status: AnswerStatus = "exact" if _is_exact(code.code, resolution) else "suggestion"
        return ResolverAnswer(code.system, code.code, status, ((target, value),))

    def _concept_id(self, resolution: dict[str, Any], name: str) -> int | None:
        """None where the resolution has no such concept, also where that is concept 0. Another form says nothing: it is no
        "unknown", and not kept."""
        concept = resolution.get(name)
        if concept is None:
            return None
        number = concept.get("concept_id") if isinstance(concept, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31:
            raise self._connection.unreadable(f"{name} of a result has no concept id")
        return number or None


def _is_exact(code: str, resolution: dict[str, Any]) -> bool:
    """Whether the structured look-up found this very code: also its source concept has it, but for how it is written."""
    source = resolution.get("source_concept")
    own = source.get("concept_code") if isinstance(source, dict) else None
    return (
        str(resolution.get("mapping_type")) in _EXACT
        and resolution.get("similarity_score") is None
        and isinstance(own, str)
        and _plain(own) == _plain(code)
    )


def _plain(code: str) -> str:
    return "".join(letter for letter in code.casefold() if letter.isalnum())
