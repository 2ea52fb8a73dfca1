"""The token endpoint's rules (SMART Backend Services as Epic has them): who gets an access token, and which scopes.

Assertion: RS384 or ES384, verified with a registered key; iss = sub = client id; aud = this token endpoint; exp not
passed and at most 5 minutes ahead; nbf and iat not in the future; jti of at most 151 characters, used once.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from pipeline.core.clock import Clock
from pipeline.sandbox.config import RegisteredClient
from pipeline.sandbox.responses import OAuthRefusal

__all__ = ["AccessToken", "TokenOffice"]

ALGORITHMS = ("RS384", "ES384")
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_MAX_LIFE_SECONDS = 300
_MAX_JTI = 151
_SCOPE = re.compile(r"(?P<context>system|patient|user)/(?P<type>\*|[A-Za-z]+)\.(?P<access>\*|read|write|[cruds]+)")

_PublicKey = RSAPublicKey | EllipticCurvePublicKey


@dataclass(frozen=True)
class AccessToken:
    value: str
    client_id: str
    scopes: tuple[str, ...]
    expires: datetime

    def reads(self, resource_type: str) -> bool:
        return _covered(f"system/{resource_type}.read", self.scopes)

    def may(self, permission: str, resource_type: str) -> bool:
        """`permission` is a letter of SMART's version 2: r to read by id, s to search."""
        return _covered(f"system/{resource_type}.{permission}", self.scopes)


class TokenOffice:
    """Issues opaque tokens and knows those that are still good. Everything is in memory: a restart ends all tokens."""

    def __init__(self, clients: Iterable[RegisteredClient], clock: Clock, token_seconds: int) -> None:
        self._clients = {client.client_id: client for client in clients}
        self._keys = {client.client_id: [_load_key(key) for key in client.public_keys] for client in clients}
        self._clock = clock
        self._token_seconds = token_seconds
        self._tokens: dict[str, AccessToken] = {}
        self._used: dict[tuple[str, str], float] = {}

    def grant(self, form: Mapping[str, str], token_url: str) -> dict[str, Any]:
        """The token answer for a request's form fields. Raises OAuthRefusal."""
        if form.get("grant_type") != "client_credentials":
            raise OAuthRefusal("unsupported_grant_type", "grant_type must be client_credentials")
        if form.get("client_assertion_type") != _ASSERTION_TYPE:
            raise OAuthRefusal("invalid_request", f"client_assertion_type must be {_ASSERTION_TYPE}")
        if not form.get("client_assertion"):
            raise OAuthRefusal("invalid_request", "client_assertion is missing")
        client = self._verified_client(form["client_assertion"], token_url)
        scopes = _granted(form.get("scope", "").split(), client.scopes)
        token = AccessToken(secrets.token_urlsafe(48), client.client_id, scopes, self._expiry())
        self._tokens[token.value] = token
        return {
            "access_token": token.value,
            "token_type": "bearer",
            "expires_in": self._token_seconds,
            "scope": " ".join(scopes),
        }

    def check(self, authorization: str | None) -> AccessToken | None:
        """The token of an Authorization header, if it is one that is still good."""
        scheme, _, value = (authorization or "").partition(" ")
        token = self._tokens.get(value.strip())
        if scheme.lower() != "bearer" or token is None:
            return None
        if token.expires <= self._clock.now():
            del self._tokens[token.value]
            return None
        return token

    def revoke_all(self) -> None:
        """Ends every token, as a server does that is restarted."""
        self._tokens.clear()

    def _expiry(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now().timestamp() + self._token_seconds, self._clock.now().tzinfo)

    def _verified_client(self, assertion: str, token_url: str) -> RegisteredClient:
        try:
            header = jwt.get_unverified_header(assertion)
            claimed = jwt.decode(assertion, options={"verify_signature": False})
        except jwt.InvalidTokenError as error:
            raise OAuthRefusal(
                "invalid_client", f"the assertion is not a valid JWT ({type(error).__name__})"
            ) from error
        client = self._clients.get(str(claimed.get("iss")))
        if client is None:
            raise OAuthRefusal("invalid_client", "iss is not a registered client id")
        claims = self._verified_claims(assertion, header, client, token_url)
        self._check_times(claims)
        self._use_once(client, claims)
        return client

    def _verified_claims(
        self, assertion: str, header: dict[str, Any], client: RegisteredClient, token_url: str
    ) -> dict[str, Any]:
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS:
            raise OAuthRefusal("invalid_client", f"alg must be one of {', '.join(ALGORITHMS)}")
        options: Any = {"require": ["exp", "aud", "iss", "sub", "jti"], "verify_exp": False, "verify_iat": False}
        options["verify_nbf"] = False  # times are judged by the injected clock, below
        reason = "no registered key fits the assertion's kid and alg"
        for key_id, key in self._keys[client.client_id]:
            wrong_kid = key_id is not None and header.get("kid") != key_id
            if wrong_kid or isinstance(key, RSAPublicKey) != (algorithm == "RS384"):
                continue
            try:
                claims: dict[str, Any] = jwt.decode(
                    assertion,
                    key,
                    algorithms=[algorithm],
                    audience=token_url,
                    issuer=client.client_id,
                    subject=client.client_id,
                    options=options,
                )
            except jwt.InvalidTokenError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                return claims
        raise OAuthRefusal("invalid_client", reason)

    def _check_times(self, claims: dict[str, Any]) -> None:
        now = self._clock.now().timestamp()
        for name in ("exp", "nbf", "iat"):
            if name in claims and not isinstance(claims[name], int | float):
                raise OAuthRefusal("invalid_client", f"{name} is not a number")
        if claims["exp"] <= now:
            raise OAuthRefusal("invalid_client", "exp has passed")
        if claims["exp"] > now + _MAX_LIFE_SECONDS:
            raise OAuthRefusal("invalid_client", "exp is more than 5 minutes ahead")
        for name in ("nbf", "iat"):
            if claims.get(name, now) > now:
                raise OAuthRefusal("invalid_client", f"{name} is in the future")

    def _use_once(self, client: RegisteredClient, claims: dict[str, Any]) -> None:
        jti = claims["jti"]
        if not isinstance(jti, str) or not 0 < len(jti) <= _MAX_JTI:
            raise OAuthRefusal("invalid_client", f"jti must be a string of 1 to {_MAX_JTI} characters")
        now = self._clock.now().timestamp()
        self._used = {key: expiry for key, expiry in self._used.items() if expiry > now}
        if (client.client_id, jti) in self._used:
            raise OAuthRefusal("invalid_client", "jti was used before")
        self._used[client.client_id, jti] = claims["exp"]


def _load_key(key: str | Mapping[str, Any]) -> tuple[str | None, _PublicKey]:
    """(kid or None, key) of a PEM text or a JWK. Raises ValueError for any other kind of key."""
    if isinstance(key, str):
        loaded: Any = load_pem_public_key(key.encode())
        kid = None
    else:
        algorithm = RSAAlgorithm if key.get("kty") == "RSA" else ECAlgorithm
        loaded = algorithm.from_jwk(json.dumps(dict(key)))
        kid = key.get("kid")
    if not isinstance(loaded, RSAPublicKey | EllipticCurvePublicKey):
        raise ValueError("a registered key must be a public RSA or EC key")  # noqa: TRY004 - the value, not its Python type
    return kid, loaded


def _granted(requested: list[str], registered: tuple[str, ...]) -> tuple[str, ...]:
    """Requested ∩ registered; all registered ones when none is asked for."""
    if not requested:
        return registered
    granted = tuple(scope for scope in dict.fromkeys(requested) if _covered(scope, registered))
    narrowed = tuple(  # system/*.read asked for, single types registered: those types are granted
        scope for scope in registered if not _covered(scope, granted) and _covered(scope, tuple(requested))
    )
    if not granted + narrowed:
        raise OAuthRefusal("invalid_scope", "none of the requested scopes is registered")
    return granted + narrowed


def _covered(scope: str, scopes: Iterable[str]) -> bool:
    asked = _SCOPE.fullmatch(scope.partition("?")[0])
    if asked is None:
        return scope in scopes
    for other in scopes:
        granted = _SCOPE.fullmatch(other.partition("?")[0])
        if granted is None or granted["context"] != asked["context"]:
            continue
        if granted["type"] in ("*", asked["type"]) and _permissions(asked["access"]) <= _permissions(granted["access"]):
            return True
    return False


def _permissions(access: str) -> frozenset[str]:
    """SMART's two ways of writing a permission, as the letters of version 2."""
    return frozenset({"read": "rs", "write": "cud", "*": "cruds"}.get(access, access))
