"""Refusals, and how each becomes an HTTP answer: FHIR's OperationOutcome, or OAuth's error at the token endpoint."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

__all__ = ["FhirRefusal", "OAuthRefusal", "epic_issue", "fhir_response", "oauth_response", "outcome_response"]


class FhirRefusal(Exception):
    """`code` is FHIR's issue type, `epic_code` Epic's own number such as 59108."""

    def __init__(
        self, status: int, code: str, text: str, headers: dict[str, str] | None = None, epic_code: str | None = None
    ) -> None:
        super().__init__(text)
        self.epic_code = epic_code
        self.status = status
        self.code = code
        self.text = text
        self.headers = headers or {}


class OAuthRefusal(Exception):
    """`error` goes to the client; `reason` only to the sandbox's log, as Epic gives a client no more than the error."""

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason


def fhir_response(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/fhir+json")


#: Epic's own words for its numbers, as they stand in `details`; what is special goes to `diagnostics`.
_EPIC_TEXTS = {
    "4101": "Resource request returns no results.",
    "4102": "The read resource request contained an invalid resource ID.",
    "59100": "The content/value for an element was invalid.",
    "59108": "A required element is missing.",
    "59109": "An element that was sent is not known and was ignored.",
}


def epic_issue(severity: str, code: str, epic_code: str, diagnostics: str = "") -> dict[str, Any]:
    """An issue as Epic writes it: its number as a coding of `details` (rule 13)."""
    text = _EPIC_TEXTS[epic_code]
    coding = {"system": "urn:oid:1.2.840.114350.1.13.0.1.7.2.657369", "code": epic_code, "display": text}
    issue: dict[str, Any] = {"severity": severity, "code": code, "details": {"coding": [coding], "text": text}}
    return {**issue, "diagnostics": diagnostics} if diagnostics else issue


def outcome_response(refusal: FhirRefusal) -> Response:
    if refusal.epic_code:
        issue = epic_issue("fatal", refusal.code, refusal.epic_code, refusal.text)
    else:
        details: dict[str, Any] = {"text": refusal.text}
        issue = {"severity": "error", "code": refusal.code, "details": details, "diagnostics": refusal.text}
    return fhir_response({"resourceType": "OperationOutcome", "issue": [issue]}, refusal.status, refusal.headers)


def oauth_response(body: dict[str, Any], status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
    return Response(orjson.dumps(body), status, headers, media_type="application/json")
