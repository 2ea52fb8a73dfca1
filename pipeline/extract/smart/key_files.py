"""New signing keys, the JWK Set that a customer hosts, and what is wrong with either.

A JWK Set (RFC 7517) holds public keys only. While keys are changed it holds the old and the new one, under their kids.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pipeline.core.clock import Clock
from pipeline.core.errors import ConfigurationError, EpicOmopError, ProtocolError, UsageError
from pipeline.core.files import create_file, sync_file
from pipeline.core.findings import Finding
from pipeline.core.settings import SiteSettings
from pipeline.extract.http.transport import RemoteRequest, RetryPolicy, Transport
from pipeline.extract.smart.keys import MIN_RSA_BITS, PrivateKey, SigningKey

__all__ = ["KeyKind", "check_hosted_keys", "check_key", "hosted_key_set", "key_set", "new_key", "write_new_key"]

KeyKind = Literal["rsa", "ec"]

_DEFAULT_RSA_BITS = 3072
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


def new_key(kind: KeyKind, bits: int = _DEFAULT_RSA_BITS) -> PrivateKey:
    """RSA for RS384, or EC on the curve P-384 for ES384. Raises UsageError for an RSA key that is too short."""
    if kind == "ec":
        return ec.generate_private_key(ec.SECP384R1())
    if bits < MIN_RSA_BITS:
        raise UsageError(f"An RSA key of {bits} bits is too weak.", f"Take {MIN_RSA_BITS} or more.")
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def write_new_key(file: Path, key: PrivateKey) -> None:
    """Write the key as PEM (PKCS #8), readable by its owner alone from its first byte on.

    Never overwrites: the old key may be in use. Raises UsageError when the file is there, ConfigurationError when the
    folder cannot be written.
    """
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        stream = create_file(file)
    except FileExistsError:
        raise UsageError(f"{file} exists; a key is never overwritten.", "Name another file with --out.") from None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written ({error.strerror}).") from error
    with stream:
        stream.write(pem)
        sync_file(stream)


def key_set(keys: Iterable[SigningKey]) -> dict[str, Any]:
    """The JWK Set of the public keys. Raises UsageError for two keys with one kid."""
    entries = [key.public_jwk() for key in keys]
    kids = [entry["kid"] for entry in entries]
    if twice := sorted({kid for kid in kids if kids.count(kid) > 1}):
        raise UsageError(f"Two keys have the kid {twice[0]}.", "A kid names one key of a set.")
    return {"keys": entries}


def check_key(key: SigningKey, what: str = "private key") -> Finding:
    """A key that could be loaded: the loader refuses what is weak, of a wrong kind, or readable by others."""
    private = key.private_key
    kind = f"RSA of {private.key_size} bits" if isinstance(private, RSAPrivateKey) else "EC on the curve P-384"
    return Finding(what, "ok", f"{kind}, {key.algorithm}, kid {key.key_id}")


def hosted_key_set(url: str, clock: Clock, site: SiteSettings | None = None) -> dict[str, Any]:
    """The document behind the URL at which the public keys are hosted. No token goes there.

    Raises ConfigurationError for an address that cannot be one, UnsafeRemote, RemoteUnavailable, RemoteRefused,
    ProtocolError.
    """
    parts = urllib.parse.urlsplit(url)
    test_mode = site.test_mode if site else False
    if parts.scheme != "https" and not (test_mode and parts.scheme == "http"):
        raise ConfigurationError(f"{url} does not begin with https://.", "A site reads keys over https alone.")
    reader = SiteSettings(
        name="key_set",
        allowed_origins=(f"{parts.scheme}://{parts.netloc}",),
        ca_file=site.ca_file if site else None,
        private_networks=site.private_networks if site else (),
        test_mode=test_mode,
    )
    request = RemoteRequest(
        "Reading the hosted JWK Set",
        url,
        headers={"Accept": "application/json"},
        advice={404: "Put the output of `epic-omop keys jwks` there."},
        event="keys",
    )
    with Transport(reader, clock, policy=RetryPolicy(attempts=2)) as transport:
        return transport.fetch(request).json()


def check_hosted_keys(url: str, keys: Sequence[SigningKey], clock: Clock, site: SiteSettings | None) -> list[Finding]:
    """Whether the hosted JWK Set is what a site needs to verify assertions that are signed with these keys."""
    try:
        document = hosted_key_set(url, clock, site)
        entries = _entries(document)
    except EpicOmopError as error:
        return [Finding("hosted JWK Set", "failed", error.message, error.advice)]
    findings = [_check_secrecy(entries), *(_check_entry(entries, key) for key in keys)]
    return [finding for finding in findings if finding]


def _entries(document: dict[str, Any]) -> list[dict[str, Any]]:
    keys = document.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise ProtocolError("The document is not a valid JWK Set: it has no list `keys`.", "See `epic-omop keys jwks`.")
    return keys


def _check_secrecy(entries: list[dict[str, Any]]) -> Finding | None:
    leaked = [str(entry.get("kid", "without kid")) for entry in entries if _PRIVATE_MEMBERS & entry.keys()]
    if not leaked:
        return None
    return Finding(
        "hosted JWK Set",
        "failed",
        f"it publishes the private part of the key {', '.join(leaked)}",
        "Everybody can sign in your name: take it down, make a new key, and inform the site.",
    )


def _check_entry(entries: list[dict[str, Any]], key: SigningKey) -> Finding:
    what = f"hosted key {key.key_id}"
    matching = [entry for entry in entries if entry.get("kid") == key.key_id]
    if not matching:
        kids = ", ".join(str(entry.get("kid", "(without kid)")) for entry in entries) or "none"
        advice = "Host the output of `epic-omop keys jwks`, or set key_id to the kid that it has there."
        return Finding(what, "failed", f"no key with this kid; there are: {kids}", advice)
    if len(matching) > 1:
        return Finding(what, "failed", "more than one key with this kid", "Leave one of them.")
    public = key.public_jwk()
    entry = matching[0]
    if any(entry.get(name) != public[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in public):
        return Finding(what, "failed", "another key under this kid", "Host the output of `epic-omop keys jwks`.")
    for name, expected in (("alg", key.algorithm), ("use", "sig")):
        if entry.get(name, expected) != expected:
            return Finding(what, "failed", f"its `{name}` is {entry[name]!r}, not {expected!r}", "Correct it.")
    return Finding(what, "ok", f"found with its kid, {key.algorithm}")
