"""SMART Backend Services: discovery, signed assertion, access tokens and what they allow.

Specification: https://hl7.org/fhir/smart-app-launch/backend-services.html. Tokens live in memory only.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.clock import Clock
from pipeline.epic.signing_key import SigningKey
from pipeline.epic.transport import Answer, RemoteRequest, Transport
from pipeline.errors import AuthenticationRefused, EpicOmopError, ProtocolError, RemoteRefused
from pipeline.settings import SiteSettings

__all__ = ["AccessToken", "SmartClient", "SmartConfiguration", "discover", "missing_types", "scopes_for"]

_log = logging.getLogger(__name__)

_OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

#: Rule 9: at most 5 minutes from `iat` to `exp`, and neither `iat` nor `nbf` in the future of a clock that is behind.
_ASSERTION_SECONDS = 240
_BACK_DATED_SECONDS = 20

#: RFC 6749 makes `expires_in` optional; SMART recommends 300 seconds.
_DEFAULT_TOKEN_SECONDS = 300.0
#: A token is renewed this long before its end, or a fifth of its life for short ones (rule 10).
_RENEW_EARLY_SECONDS = 60.0

#: A difference between the clocks that is worth naming when an assertion is refused.
_NOTABLE_SKEW_SECONDS = 30.0

_SCOPE = re.compile(r"system/(?P<type>\*|[A-Za-z]+)\.(?P<rights>\*|read|write|[cruds]+)(\?.*)?")


@dataclass(frozen=True)
class SmartConfiguration:
    """What discovery tells: the token endpoint and, where stated, the scopes that the server knows."""

    token_endpoint: str
    scopes_supported: tuple[str, ...] = ()


@dataclass(frozen=True)
class AccessToken:
    """An opaque token, when to renew it, and the scopes as the server stated them."""

    value: str
    renew_at: datetime
    scope: str | None

    def __repr__(self) -> str:
        return f"AccessToken(renew_at={self.renew_at.isoformat()}, scope={self.scope!r})"


def scopes_for(resource_types: Iterable[str]) -> str:
    """The scopes to ask for: `system/<Type>.read` for each type."""
    return " ".join(f"system/{resource_type}.read" for resource_type in resource_types)


def missing_types(granted: str | None, resource_types: Iterable[str]) -> tuple[str, ...]:
    """The types that the granted scopes (version 1 or 2) do not allow to read, in the order asked (rule 8).

    A token answer without `scope` grants what was asked (RFC 6749, section 5.1).
    """
    if granted is None:
        return ()
    readable = set()
    for scope in granted.split():
        match = _SCOPE.fullmatch(scope)
        if match and (match["rights"] in ("*", "read") or "r" in match["rights"].replace("write", "")):
            readable.add(match["type"])
    return () if "*" in readable else tuple(name for name in resource_types if name not in readable)


def discover(transport: Transport, fhir_url: str) -> SmartConfiguration:
    """The site's SMART configuration; where there is none, the oauth-uris of its CapabilityStatement.

    Sends once each: who calls it decides on retries. Raises ProtocolError when neither names a token endpoint.
    """
    base = fhir_url.rstrip("/")
    document = _json_or_none(
        transport,
        RemoteRequest(
            "Discovery of the SMART configuration",
            f"{base}/.well-known/smart-configuration",
            headers={"Accept": "application/json"},
        ),
    )
    endpoint = document.get("token_endpoint") if document else None
    if isinstance(endpoint, str) and document:
        scopes = document.get("scopes_supported")
        return SmartConfiguration(endpoint, tuple(map(str, scopes)) if isinstance(scopes, list) else ())
    statement = _json_or_none(
        transport,
        RemoteRequest(
            "Reading the CapabilityStatement",
            f"{base}/metadata",
            headers={"Accept": "application/fhir+json"},
            max_bytes=32 << 20,
        ),
    )
    endpoint = _oauth_token_uri(statement or {})
    if endpoint is None:
        raise ProtocolError(
            f"Neither {base}/.well-known/smart-configuration nor its CapabilityStatement names a token endpoint.",
            "Check fhir_url in sites.yaml: it ends with /api/FHIR/R4 at most Epic sites.",
        )
    return SmartConfiguration(endpoint)


def _json_or_none(transport: Transport, request: RemoteRequest) -> dict[str, Any] | None:
    answer = transport.send(request)
    if answer.is_transient:
        raise answer.error()
    if answer.status != 200:
        return None
    try:
        return answer.json()
    except ProtocolError:  # some servers answer an unknown path with a page
        return None


def _oauth_token_uri(statement: dict[str, Any]) -> str | None:
    try:
        extensions = [
            part
            for rest in statement.get("rest", ())
            for extension in rest.get("security", {}).get("extension", ())
            if extension.get("url") == _OAUTH_URIS
            for part in extension.get("extension", ())
        ]
        found = [part.get("valueUri") for part in extensions if part.get("url") == "token"]
    except (AttributeError, TypeError):
        return None
    return found[0] if found and isinstance(found[0], str) else None


class SmartClient:
    """Access tokens of one site's client: one at a time, kept in memory, renewed early. Thread-safe."""

    def __init__(self, site: SiteSettings, key: SigningKey, clock: Clock) -> None:
        self._site = site
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._token: AccessToken | None = None
        self._configuration: SmartConfiguration | None = None
        self._told_missing: tuple[str, ...] = ()

    def current(self, transport: Transport) -> str:
        """A token that is good for a while yet; asks for a new one when need be.

        Raises AuthenticationRefused, ProtocolError, UnsafeRemote, RemoteUnavailable.
        """
        with self._lock:
            if self._token is None or self._token.renew_at <= self._clock.now():
                self._token = self._request_token(transport)
            return self._token.value

    def renew(self, rejected: str, transport: Transport) -> str:
        """A token other than `rejected`. Of several threads that were refused at once, one asks."""
        with self._lock:
            if self._token is None or self._token.value == rejected:
                self._token = None
                self._token = self._request_token(transport)
            return self._token.value

    def missing_types(self) -> tuple[str, ...]:
        """Types asked for that the last token does not allow to read."""
        token = self._token
        return missing_types(token.scope, self._site.resource_types) if token else ()

    def assertion(self, audience: str) -> str:
        """A signed JWT as rule 9 has it: never longer valid than five minutes, used once."""
        now = int(self._clock.now().timestamp())
        client_id = self._site.client_id
        return self._key.sign(
            {
                "iss": client_id,
                "sub": client_id,
                "aud": audience,
                "iat": now - _BACK_DATED_SECONDS,
                "nbf": now - _BACK_DATED_SECONDS,
                "exp": now + _ASSERTION_SECONDS,
                "jti": secrets.token_urlsafe(32),
            }
        )

    def _request_token(self, transport: Transport) -> AccessToken:
        if self._configuration is None:
            self._configuration = discover(transport, self._site.fhir_url or "")
        endpoint = self._configuration.token_endpoint
        audience = self._site.audience or endpoint
        answer = transport.send(
            RemoteRequest(
                f"Asking for an access token of site {self._site.name}",
                endpoint,
                method="POST",
                headers={"Accept": "application/json"},
                form={
                    "grant_type": "client_credentials",
                    "client_assertion_type": _ASSERTION_TYPE,
                    "client_assertion": self.assertion(audience),
                    "scope": scopes_for(self._site.resource_types),
                },
            )
        )
        if answer.status != 200:
            raise self._refusal(answer, audience)
        token = _token_of(answer)
        self._tell_missing(token)
        return token

    def _tell_missing(self, token: AccessToken) -> None:
        missing = missing_types(token.scope, self._site.resource_types)
        if missing and missing != self._told_missing:
            _log.warning(
                "Site %s grants no read access to: %s. Register these APIs for the app, or take them out of "
                "resource_types in sites.yaml.",
                self._site.name,
                ", ".join(missing),
            )
        self._told_missing = missing

    def _refusal(self, answer: Answer, audience: str) -> EpicOmopError:
        if answer.is_transient:
            return answer.error()
        code = _error_code(answer)
        what = f"{answer.request.action}: the server refused ({answer.status}{f', {code}' if code else ''})."
        if code == "invalid_client":
            return AuthenticationRefused(what, self._invalid_client_advice(answer, audience))
        if code == "invalid_scope":
            advice = "None of resource_types in sites.yaml may be registered for this app: compare them with the app."
            return AuthenticationRefused(what, advice)
        if answer.status in (400, 401, 403):
            return AuthenticationRefused(what, self._invalid_client_advice(answer, audience))
        return RemoteRefused(what, "Check fhir_url in sites.yaml.", status=answer.status)

    def _invalid_client_advice(self, answer: Answer, audience: str) -> str:
        """The four things behind nearly every refusal (rule 9), with what this client sent."""
        skew = _clock_difference(answer)
        clock = (
            f"this machine's clock differs from the server's by {skew:.0f} s: correct it"
            if skew is not None and abs(skew) > _NOTABLE_SKEW_SECONDS
            else "this machine's clock (it must agree with the server's)"
        )
        return (
            f"Check: (1) client_id {self._site.client_id}: non-production and production ids differ; "
            f"(2) the public key with kid {self._key.key_id}: a new key takes hours to days until Epic has synced it; "
            f"(3) the audience {audience}: behind a proxy set `audience` in sites.yaml; (4) {clock}."
        )


def _token_of(answer: Answer) -> AccessToken:
    document = answer.json()
    value = document.get("access_token")
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ProtocolError(f"{answer.request.action}: the answer holds no access_token.")
    try:
        life = max(0.0, float(document.get("expires_in") or _DEFAULT_TOKEN_SECONDS))
    except (TypeError, ValueError):
        life = _DEFAULT_TOKEN_SECONDS
    usable = life - min(_RENEW_EARLY_SECONDS, life / 5)
    scope = document.get("scope")
    renew_at = answer.received_at + timedelta(seconds=min(usable, 86_400.0))
    return AccessToken(value, renew_at, scope if isinstance(scope, str) else None)


def _error_code(answer: Answer) -> str:
    """RFC 6749's `error`, the only part of the body that is read."""
    try:
        code = answer.json().get("error")
    except ProtocolError:
        return ""
    return code if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code) else ""


def _clock_difference(answer: Answer) -> float | None:
    """Seconds by which the server's Date header differs from this machine's clock."""
    try:
        return (parsedate_to_datetime(answer.headers["date"]) - answer.received_at).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None
