"""Refusals, and how each becomes an HTTP answer: FHIR's OperationOutcome, or OAuth's error at the token endpoint."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

__all__ = ["FhirRefusal", "OAuthRefusal", "fhir_answer", "oauth_answer", "outcome_answer"]


class FhirRefusal(Exception):
    """`code` is FHIR's issue type."""

    def __init__(self, status: int, code: str, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.headers = headers or {}


class OAuthRefusal(Exception):
    """`error` goes to the client; `reason` only to the sandbox's log, as Epic tells a client no more than the error."""

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason


def fhir_answer(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/fhir+json")


def outcome_answer(refusal: FhirRefusal) -> Response:
    issue = {
        "severity": "error",
        "code": refusal.code,
        "details": {"text": refusal.text},
        "diagnostics": refusal.text,
    }
    return fhir_answer({"resourceType": "OperationOutcome", "issue": [issue]}, refusal.status, refusal.headers)


def oauth_answer(body: dict[str, Any], status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
    return Response(orjson.dumps(body), status, headers, media_type="application/json")
