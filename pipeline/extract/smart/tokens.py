"""SMART Backend Services: discovery, signed assertion, access tokens and what they allow.

Specification: https://hl7.org/fhir/smart-app-launch/backend-services.html. Tokens live in memory only.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.core.clock import Clock
from pipeline.core.errors import AuthenticationRefused, EpicOmopError, ProtocolError, RemoteRefused
from pipeline.core.settings import SiteSettings
from pipeline.extract.http.recording import AccessEntry
from pipeline.extract.http.redaction import shown_url
from pipeline.extract.http.transport import RemoteRequest, Response, Transport
from pipeline.extract.smart.keys import SigningKey

__all__ = [
    "AccessToken",
    "SmartClient",
    "SmartConfiguration",
    "clock_difference",
    "discover",
    "missing_types",
    "scopes_for",
]

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

#: A difference between the clocks that is worth naming, and correcting for, when an assertion is refused.
_NOTABLE_SKEW_SECONDS = 30.0

_SCOPE = re.compile(r"system/(?P<type>\*|[A-Za-z]+)\.(?P<rights>\*|read|write|[cruds]+)(\?.*)?")


@dataclass(frozen=True)
class SmartConfiguration:
    """What discovery reports: the token endpoint and, where stated, the scopes that the server knows."""

    token_endpoint: str
    scopes_supported: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    #: Seconds by which the server's clock is ahead of ours.
    clock_difference: float | None = None

    @property
    def scope_version(self) -> str | None:
        """v1 or v2 where discovery states it; v1 where it states both, because older clients are registered with it."""
        for version, permission in (("v1", "permission-v1"), ("v2", "permission-v2")):
            if permission in self.capabilities:
                return version
        rights = {match["rights"] for scope in self.scopes_supported if (match := _SCOPE.fullmatch(scope))}
        if not rights:
            return None
        return "v1" if rights & {"read", "*"} else "v2"


@dataclass(frozen=True)
class AccessToken:
    """An opaque token, when to renew it, and the scopes as the server stated them."""

    value: str
    renew_at: datetime
    scope: str | None
    expires_at: datetime

    def __repr__(self) -> str:
        return f"AccessToken(renew_at={self.renew_at.isoformat()}, scope={self.scope!r})"


def scopes_for(resource_types: Iterable[str], version: str = "v1") -> str:
    """The scopes to ask for: `system/<Type>.read` (v1) or `system/<Type>.rs` (v2) for each type."""
    right = "rs" if version == "v2" else "read"
    return " ".join(f"system/{resource_type}.{right}" for resource_type in resource_types)


def missing_types(granted: str | None, resource_types: Iterable[str], *, search: bool = False) -> tuple[str, ...]:
    """The types that the granted scopes (version 1 or 2) do not allow to read, or to search, in the order asked
    (rule 8).

    A token answer without `scope` grants what was asked (RFC 6749, section 5.1).
    """
    if granted is None:
        return ()
    letter = "s" if search else "r"
    readable = set()
    for scope in granted.split():
        match = _SCOPE.fullmatch(scope)
        if match and (match["rights"] in ("*", "read") or letter in match["rights"].replace("write", "")):
            readable.add(match["type"])
    return () if "*" in readable else tuple(name for name in resource_types if name not in readable)


def discover(transport: Transport, fhir_url: str) -> SmartConfiguration:
    """The site's SMART configuration; where there is none, the oauth-uris of its CapabilityStatement.

    Sends once each: who calls it decides on retries. Raises ProtocolError when neither names a token endpoint.
    """
    answer, document = _json_or_none(
        transport,
        RemoteRequest(
            "Discovery of the SMART configuration",
            f"{fhir_url}/.well-known/smart-configuration",
            headers={"Accept": "application/json"},
            event="discovery",
        ),
    )
    endpoint = document.get("token_endpoint")
    if isinstance(endpoint, str):
        return SmartConfiguration(
            endpoint,
            _texts(document.get("scopes_supported")),
            _texts(document.get("token_endpoint_auth_signing_alg_values_supported")),
            _texts(document.get("capabilities")),
            clock_difference(answer),
        )
    answer, statement = _json_or_none(
        transport,
        RemoteRequest(
            "Reading the CapabilityStatement",
            f"{fhir_url}/metadata",
            headers={"Accept": "application/fhir+json"},
            max_bytes=32 << 20,
            event="capabilities",
        ),
    )
    endpoint = _oauth_token_uri(statement)
    if endpoint is None:
        raise ProtocolError(
            f"Neither {fhir_url}/.well-known/smart-configuration nor its CapabilityStatement names a token endpoint.",
            "Check fhir_url in sites.yaml: it ends with /api/FHIR/R4 at most Epic sites.",
        )
    return SmartConfiguration(endpoint, clock_difference=clock_difference(answer))


def _json_or_none(transport: Transport, request: RemoteRequest) -> tuple[Response, dict[str, Any]]:
    """The answer and its document, empty where there is none."""
    answer = transport.send(request)
    if answer.is_transient:
        raise answer.error()
    if answer.status != 200:
        return answer, {}
    try:
        return answer, answer.json()
    except ProtocolError:  # some servers answer an unknown path with a page
        return answer, {}


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


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
    """Access tokens of one site's client: one at a time, kept in memory, renewed early. Thread-safe.

    Of several keys the first that the site accepts is used: while keys are changed, the site may not know the new
    one yet.
    """

    def __init__(self, site: SiteSettings, keys: Sequence[SigningKey], clock: Clock) -> None:
        self._site = site
        self._keys = tuple(keys)
        self._clock = clock
        #: What is added to our clock in assertions, once the server has refused one and its clock is another.
        self._clock_shift = 0.0
        self._lock = threading.Lock()
        self._token: AccessToken | None = None
        self._configuration: SmartConfiguration | None = None
        self._reported_missing: tuple[str, ...] = ()

    def for_types(self, resource_types: Sequence[str]) -> SmartClient:
        """A client for other types, which goes by the same keys, clock and discovery; it asks for a token of its own."""
        site = self._site.model_copy(update={"resource_types": tuple(resource_types)})
        other = SmartClient(site, self._keys, self._clock)
        other._clock_shift, other._configuration = self._clock_shift, self._configuration
        return other

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

    def missing_types(self, *, search: bool = False) -> tuple[str, ...]:
        """Types asked for that the last token does not allow to read (or to search)."""
        token = self._token
        return missing_types(token.scope, self._site.asked_types, search=search) if token else ()

    @property
    def token(self) -> AccessToken | None:
        """The last token."""
        return self._token

    @property
    def key(self) -> SigningKey:
        """The key that is tried first: the one that the site accepted last."""
        return self._keys[0]

    def assertion(self, audience: str, key: SigningKey | None = None) -> str:
        """A signed JWT as rule 9 has it: never longer valid than five minutes, used once."""
        now = int(self._clock.now().timestamp() + self._clock_shift)
        client_id = self._site.client_id
        return (key or self.key).sign(
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
        transport.record(AccessEntry("auth start", url=shown_url(endpoint)))
        refused: list[tuple[Response, SigningKey]] = []
        for key in self._keys:
            answer = self._ask(transport, key)
            if _is_unknown_client(answer) and self._goes_by_server_clock(answer):
                answer = self._ask(transport, key)
            if answer.status == 200:
                self._keep_to(key)
                token = _token_of(answer)
                self._report_missing(token)
                return token
            refused.append((answer, key))
            if not _is_unknown_client(answer):
                break
        raise self._refusal(*refused[0])

    def _ask(self, transport: Transport, key: SigningKey) -> Response:
        assert self._configuration is not None
        endpoint = self._configuration.token_endpoint
        version = self._site.scope_version or self._configuration.scope_version or "v1"
        return transport.send(
            RemoteRequest(
                f"Asking for an access token of site {self._site.name}",
                endpoint,
                method="POST",
                headers={"Accept": "application/json"},
                form={
                    "grant_type": "client_credentials",
                    "client_assertion_type": _ASSERTION_TYPE,
                    "client_assertion": self.assertion(self._audience, key),
                    "scope": scopes_for(self._site.asked_types, version),
                },
                event="token",
            )
        )

    @property
    def _audience(self) -> str:
        assert self._configuration is not None
        return self._site.audience or self._configuration.token_endpoint

    def _goes_by_server_clock(self, answer: Response) -> bool:
        """Whether another assertion makes sense because ours went by a clock that differs from the server's."""
        difference = clock_difference(answer)
        if difference is None or abs(difference - self._clock_shift) <= _NOTABLE_SKEW_SECONDS:
            return False
        self._clock_shift = difference
        _log.warning(
            "This machine's clock differs from that of site %s by %.0f s: correct it. Assertions go by the site's.",
            self._site.name,
            difference,
        )
        return True

    def _keep_to(self, key: SigningKey) -> None:
        if key is self.key:
            return
        _log.warning(
            "Site %s does not know the key with kid %s yet; the previous one, %s, is used.",
            self._site.name,
            self.key.key_id,
            key.key_id,
        )
        self._keys = (key, *(other for other in self._keys if other is not key))

    def _report_missing(self, token: AccessToken) -> None:
        missing = missing_types(token.scope, self._site.asked_types)
        if missing and missing != self._reported_missing:
            _log.warning(
                "Site %s grants no read access to: %s. Register these APIs for the app, or take them out of "
                "resource_types in sites.yaml.",
                self._site.name,
                ", ".join(missing),
            )
        self._reported_missing = missing

    def _refusal(self, answer: Response, key: SigningKey) -> EpicOmopError:
        if answer.is_transient:
            return answer.error()
        code = answer.code
        what = f"{answer.request.action}: the server refused ({answer.status}{f', {code}' if code else ''})."
        if code == "invalid_client":
            return AuthenticationRefused(what, self._invalid_client_advice(answer, key))
        if code == "invalid_scope":
            advice = "None of resource_types in sites.yaml may be registered for this app: compare them with the app."
            return AuthenticationRefused(what, advice)
        if answer.status in (400, 401, 403):
            return AuthenticationRefused(what, self._invalid_client_advice(answer, key))
        return RemoteRefused(what, "Check fhir_url in sites.yaml.", status=answer.status)

    def _invalid_client_advice(self, answer: Response, key: SigningKey) -> str:
        """The four things behind nearly every refusal (rule 9), with what this client sent."""
        skew = clock_difference(answer)
        clock = (
            f"this machine's clock differs from the server's by {skew:.0f} s: correct it"
            if skew is not None and abs(skew) > _NOTABLE_SKEW_SECONDS
            else "this machine's clock (it must agree with the server's)"
        )
        return (
            f"Check: (1) client_id {self._site.client_id}: non-production and production ids differ; "
            f"(2) the public key with kid {key.key_id}: a new key takes hours to days until Epic has synced it; "
            f"(3) the audience {self._audience}: behind a proxy set `audience` in sites.yaml; (4) {clock}."
        )


def _token_of(answer: Response) -> AccessToken:
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
    expires_at = answer.received_at + timedelta(seconds=min(life, 86_400.0))
    return AccessToken(value, renew_at, scope if isinstance(scope, str) else None, expires_at)


def _is_unknown_client(answer: Response) -> bool:
    """Refused for what the assertion says or is signed with; not for its scopes, and not for now."""
    return not answer.is_transient and answer.status in (400, 401, 403) and answer.code in (None, "invalid_client")


def clock_difference(answer: Response) -> float | None:
    """Seconds by which the server's clock, by its Date header, is ahead of this machine's."""
    try:
        server = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError, TypeError):
        return None
    return ((server if server.tzinfo else server.replace(tzinfo=UTC)) - answer.received_at).total_seconds()
