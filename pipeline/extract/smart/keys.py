"""The private keys that a site's client signs its assertions with: PEM, JWK or JWK Set, by file or variable.

A key never leaves this module except inside `SigningKey`, whose representation does not show it. New keys and their
public JWK Sets are made in `key_files.py`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import SiteSettings

__all__ = [
    "MIN_RSA_BITS",
    "PrivateKey",
    "SigningKey",
    "key_from_file",
    "load_signing_key",
    "load_signing_keys",
    "read_key_file",
]

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey

MIN_RSA_BITS = 2048
_NEW_KEY_ADVICE = "Make a new key pair, give the public key to Epic, and name the private key in sites.yaml."


@dataclass(frozen=True)
class SigningKey:
    """A private key with its `kid` and the algorithm that its type asks for (RS384 or ES384)."""

    private_key: PrivateKey = field(repr=False)
    key_id: str
    algorithm: str

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A JWT of the claims with `kid` in its header."""
        return jwt.encode(dict(claims), self.private_key, algorithm=self.algorithm, headers={"kid": self.key_id})

    def public_jwk(self) -> dict[str, Any]:
        """The public key as a JWK with `kid`, `alg` and `use`, for the JWK Set that the site reads."""
        public = _public_members(self.private_key.public_key())
        return {**public, "kid": self.key_id, "alg": self.algorithm, "use": "sig"}


@dataclass(frozen=True)
class _Source:
    """Where a key of a site is: a file, else a variable; which one of a JWK Set."""

    file: Path | None
    variable: str | None
    key_id: str | None


def load_signing_key(site: SiteSettings, environment: Mapping[str, str] | None = None) -> SigningKey:
    """The key of a site, from its `private_key_file` or the variable named by `private_key_env`.

    The `kid` is the site's `key_id`, else the JWK's own, else the RFC 7638 thumbprint of the public key.
    Raises ConfigurationError for a missing, readable-by-others, weak or unsuitable key; messages never show it.
    """
    return _loaded(site, _Source(site.private_key_file, site.private_key_env, site.key_id), environment)


def load_signing_keys(site: SiteSettings, environment: Mapping[str, str] | None = None) -> tuple[SigningKey, ...]:
    """The site's key and, while keys are changed, the previous one, which the site may still be the only to know.

    Raises ConfigurationError as `load_signing_key`.
    """
    keys = [load_signing_key(site, environment)]
    file, variable = site.previous_private_key_file, site.previous_private_key_env
    if not file and not variable and site.previous_key_id:  # another key of the same set
        file, variable = site.private_key_file, site.private_key_env
    if file or variable:
        keys.append(_loaded(site, _Source(file, variable, site.previous_key_id), environment))
    return tuple(keys)


def key_from_file(file: Path, key_id: str | None = None) -> SigningKey:
    """A key that belongs to no site yet. Raises ConfigurationError as `load_signing_key`."""
    return _signing_key(read_key_file(file), f"The key file {file}", key_id, None)


def _loaded(site: SiteSettings, source: _Source, environment: Mapping[str, str] | None) -> SigningKey:
    content, where = _read_key(site.name, source, os.environ if environment is None else environment)
    return _signing_key(content, where, source.key_id, site.algorithm)


def _signing_key(content: bytes, where: str, key_id: str | None, algorithm: str | None) -> SigningKey:
    if content.lstrip().startswith(b"{"):
        private_key, own_key_id = _from_jwk(content, key_id, where)
    else:
        private_key, own_key_id = _from_pem(content, where), None
    found = key_id or own_key_id or _thumbprint(private_key.public_key())
    return SigningKey(private_key, found, _algorithm(private_key, algorithm, where))


def _read_key(site: str, source: _Source, environment: Mapping[str, str]) -> tuple[bytes, str]:
    if source.file:
        return read_key_file(source.file), f"The key file {source.file} of site {site}"
    name = source.variable or ""
    value = environment.get(name, "")
    if not value.strip():
        raise ConfigurationError(
            f"The environment variable {name or '(none)'} that should hold the key of site {site} is empty.",
            "Set it, or name a private_key_file in sites.yaml.",
        )
    return value.encode(), f"The key in the environment variable {name} of site {site}"


def read_key_file(path: Path) -> bytes:
    """A secret's file, which is its owner's alone. Raises ConfigurationError."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"The key file {path} can be used by others (mode {mode:04o}).",
                f"Run: chmod 600 {path} — and think about replacing the key if others have access to this machine.",
            )
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"The key file {path} cannot be read ({error.strerror}).") from error


def _from_pem(content: bytes, where: str) -> PrivateKey:
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise ConfigurationError(f"{where} has a passphrase.", "Store it without one, protected by rights.") from None
    except (ValueError, UnsupportedAlgorithm):
        advice = "It must begin with -----BEGIN PRIVATE KEY-----, or be a JWK or JWK Set."
        raise ConfigurationError(f"{where} is not a valid private key in PEM form.", advice) from None
    return _suitable(key, where)


def _from_jwk(content: bytes, key_id: str | None, where: str) -> tuple[PrivateKey, str | None]:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise ConfigurationError(f"{where} is neither PEM nor JSON.") from None
    entry = _chosen(document["keys"], key_id, where) if "keys" in document else document
    kinds: dict[str, type[RSAAlgorithm] | type[ECAlgorithm]] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm}
    kind = kinds.get(str(entry.get("kty")))
    if kind is None or "d" not in entry:
        raise ConfigurationError(f"{where} holds no private RSA or EC key.", "Name the private key, not the public.")
    try:
        key = kind.from_jwk(entry)
    except (jwt.InvalidKeyError, ValueError, TypeError):
        raise ConfigurationError(f"{where} is a damaged JWK.", _NEW_KEY_ADVICE) from None
    own = entry.get("kid")
    return _suitable(key, where), own if isinstance(own, str) else None


def _chosen(keys: object, key_id: str | None, where: str) -> dict[str, Any]:
    """The one private key of a JWK Set that is meant."""
    private = [key for key in keys if isinstance(key, dict) and "d" in key] if isinstance(keys, list) else []
    matching = [key for key in private if key_id is None or key.get("kid") == key_id]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(str(key.get("kid", "(without kid)")) for key in private) or "none"
    stated = f"with kid {key_id!r}" if key_id else "to choose without key_id"
    raise ConfigurationError(
        f"{where} is a JWK Set with {len(matching)} private keys {stated}.",
        f"Its private keys: {names}. Set key_id in sites.yaml to one of them.",
    )


def _suitable(key: object, where: str) -> PrivateKey:
    if isinstance(key, RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            message = f"{where} has {key.key_size} bits; at least {MIN_RSA_BITS} are required."
            raise ConfigurationError(message, _NEW_KEY_ADVICE)
        return key
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1):
        return key
    raise ConfigurationError(f"{where} is neither an RSA key nor an EC key on the curve P-384.", _NEW_KEY_ADVICE)


def _algorithm(key: PrivateKey, stated: str | None, where: str) -> str:
    algorithm = "RS384" if isinstance(key, RSAPrivateKey) else "ES384"
    if stated not in (None, algorithm):
        raise ConfigurationError(f"{where} signs with {algorithm}, but sites.yaml says {stated}.")
    return algorithm


def _thumbprint(key: RSAPublicKey | EllipticCurvePublicKey) -> str:
    """RFC 7638: SHA-256 of the required members of the public JWK, in lexical order, without spaces."""
    required = _public_members(key)
    digest = hashlib.sha256(orjson.dumps(required, option=orjson.OPT_SORT_KEYS)).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _public_members(key: RSAPublicKey | EllipticCurvePublicKey) -> dict[str, Any]:
    """The required members of the public JWK."""
    public: dict[str, Any] = (
        RSAAlgorithm.to_jwk(key, as_dict=True)
        if isinstance(key, RSAPublicKey)
        else ECAlgorithm.to_jwk(key, as_dict=True)
    )
    return {name: public[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in public}
