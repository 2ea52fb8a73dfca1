"""Keys, assertions, discovery, tokens and scopes; the token endpoint is a real server on loopback."""

from __future__ import annotations

import json
import logging
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from pipeline.core.clock import ManualClock
from pipeline.core.errors import (
    AuthenticationRefused,
    ConfigurationError,
    EpicOmopError,
    ProtocolError,
    RemoteRefused,
    RemoteUnavailable,
    UnsafeRemote,
)
from pipeline.core.settings import SiteSettings
from pipeline.extract.http.transport import RetryPolicy, Transport
from pipeline.extract.smart import keys
from pipeline.extract.smart.keys import load_signing_key, load_signing_keys
from pipeline.extract.smart.session import open_session
from pipeline.extract.smart.tokens import SmartClient, discover, missing_types, scopes_for

NOW = datetime.now(UTC).replace(microsecond=0)
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP384R1())
OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"


def pem(key: Any, *, passphrase: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    content: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return content


def jwk(key: Any, kid: str | None = None) -> dict[str, Any]:
    kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    entry: dict[str, Any] = json.loads(kind.to_jwk(key))
    return {**entry, "kid": kid} if kid else entry


def site_with(tmp_path: Path, content: bytes, *, url: str = "http://127.0.0.1:9", **more: Any) -> SiteSettings:
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_bytes(content)
    return SiteSettings(
        name="site_a",
        fhir_url=f"{url}/fhir",
        client_id="client-1",
        private_key_file=file,
        groups=("g1",),
        test_mode=True,
        resource_types=("Patient", "Observation"),
        **more,
    )


# --- keys


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS384"), (EC_KEY, "ES384")])
@pytest.mark.parametrize("form", ["pem", "jwk", "set"])
def test_keys_in_every_form_sign(tmp_path: Path, key: Any, algorithm: str, form: str) -> None:
    contents = {
        "pem": pem(key),
        "jwk": json.dumps(jwk(key, "kid-1")).encode(),
        "set": json.dumps({"keys": [jwk(EC_KEY, "other"), jwk(RSA_KEY, "old"), jwk(key, "kid-1")]}).encode(),
    }
    loaded = load_signing_key(site_with(tmp_path, contents[form], key_id="kid-1"))
    token = loaded.sign({"a": 1})
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "kid": "kid-1", "typ": "JWT"}
    assert jwt.decode(token, key.public_key(), algorithms=[algorithm]) == {"a": 1}
    assert "private" not in repr(loaded).lower()


def test_the_kid_of_a_jwk_is_used_and_a_pem_gets_its_thumbprint(tmp_path: Path) -> None:
    assert load_signing_key(site_with(tmp_path, json.dumps(jwk(EC_KEY, "own")).encode())).key_id == "own"
    thumbprint = load_signing_key(site_with(tmp_path, pem(EC_KEY))).key_id
    assert len(thumbprint) == 43
    assert load_signing_key(site_with(tmp_path, json.dumps(jwk(EC_KEY)).encode())).key_id == thumbprint


def test_the_thumbprint_of_rfc_7638() -> None:
    """The example of RFC 7638, section 3.1, computed from its public members."""
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3"
        "oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgd"
        "AZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFC"
        "ur-kEgU8awapJzKnqDKgw"
    )
    public = RSAAlgorithm.from_jwk({"kty": "RSA", "e": "AQAB", "n": modulus})
    assert isinstance(public, rsa.RSAPublicKey)
    assert keys._thumbprint(public) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_a_key_from_a_variable(tmp_path: Path) -> None:
    site = SiteSettings(
        name="site_a", fhir_url="https://h/fhir", client_id="c", private_key_env="SITE_KEY", groups=("g",)
    )
    assert load_signing_key(site, {"SITE_KEY": pem(RSA_KEY).decode()}).algorithm == "RS384"
    with pytest.raises(ConfigurationError, match="SITE_KEY"):
        load_signing_key(site, {})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    site = site_with(tmp_path, pem(RSA_KEY))
    os.chmod(tmp_path / "key", mode)  # noqa: PTH101 - the mode as the system has it
    with pytest.raises(ConfigurationError, match=r"can be used by others.*chmod 600"):
        load_signing_key(site)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "1024 bits"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "P-384"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "P-384"),
        (pem(RSA_KEY, passphrase=b"secret words"), "passphrase"),
        (b"", "not a valid private key in PEM form"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a valid private key in PEM form"),
        (b"{", "neither PEM nor JSON"),
        (b'{"kty": "oct", "k": "abc", "d": "x"}', "no private RSA or EC key"),
        (b'{"kty": "RSA", "n": "AQAB", "e": "AQAB"}', "no private RSA or EC key"),
        (b'{"kty": "RSA", "n": "!", "e": "!", "d": "!"}', "damaged JWK"),
        (b'{"keys": []}', "0 private keys"),
        (json.dumps({"keys": [jwk(RSA_KEY, "a"), jwk(EC_KEY, "b")]}).encode(), r"2 private keys.*a, b"),
    ],
)
def test_keys_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_signing_key(site_with(tmp_path, content))
    assert "BEGIN" not in caught.value.message


def test_a_missing_key_file_and_a_wrong_algorithm(tmp_path: Path) -> None:
    site = site_with(tmp_path, pem(RSA_KEY), algorithm="ES384")
    with pytest.raises(ConfigurationError, match=r"signs with RS384, but sites\.yaml says ES384"):
        load_signing_key(site)
    (tmp_path / "key").unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_signing_key(site)


# --- scopes


def test_scopes_asked_for() -> None:
    assert scopes_for(("Patient", "Goal")) == "system/Patient.read system/Goal.read"
    assert scopes_for(("Patient", "Goal"), "v2") == "system/Patient.rs system/Goal.rs"


@pytest.mark.parametrize(
    ("granted", "missing"),
    [("system/Patient.r system/Goal.rs", ("Patient",)), ("system/Patient.read system/Goal.s", ()), (None, ())],
)
def test_searching_is_a_right_of_its_own(granted: str | None, missing: tuple[str, ...]) -> None:
    assert missing_types(granted, ("Patient", "Goal"), search=True) == missing


@pytest.mark.parametrize(
    ("told", "setting", "scope"),
    [
        ({}, None, "system/Patient.read system/Observation.read"),
        ({"capabilities": ["permission-v2"]}, None, "system/Patient.rs system/Observation.rs"),
        ({"capabilities": ["permission-v2", "permission-v1"]}, None, "system/Patient.read system/Observation.read"),
        ({"scopes_supported": ["openid", "system/*.rs"]}, None, "system/Patient.rs system/Observation.rs"),
        ({"scopes_supported": ["system/*.rs", "system/*.read"]}, None, "system/Patient.read system/Observation.read"),
        ({"capabilities": ["permission-v1"]}, "v2", "system/Patient.rs system/Observation.rs"),
        ({"capabilities": ["permission-v2"]}, "v1", "system/Patient.read system/Observation.read"),
    ],
)
def test_the_version_of_scopes_is_the_sites(
    server: TokenServer, tmp_path: Path, told: dict[str, Any], setting: Any, scope: str
) -> None:
    server.discovery = (200, {"token_endpoint": f"{server.url}/token", **told})
    site = site_with(tmp_path, pem(RSA_KEY), url=server.url, scope_version=setting)
    with open_session(site, ManualClock(NOW)) as session:
        session.tokens.current(session.transport)
    assert server.forms[0]["scope"] == scope


@pytest.mark.parametrize(
    ("granted", "missing"),
    [
        (None, ()),
        ("", ("Patient", "Goal")),
        ("system/*.read", ()),
        ("system/*.*", ()),
        ("system/*.rs", ()),
        ("system/Patient.read system/Goal.rs?category=x", ()),
        ("system/Patient.read openid", ("Goal",)),
        ("system/Patient.cud user/Goal.read", ("Patient", "Goal")),
        ("system/Patient.write", ("Patient", "Goal")),
        ("system/Patient.cruds system/Goals.read", ("Goal",)),
    ],
)
def test_scopes_granted_are_compared(granted: str | None, missing: tuple[str, ...]) -> None:
    assert missing_types(granted, ("Patient", "Goal")) == missing


# --- discovery and tokens


@dataclass
class TokenServer:
    """Discovery and token endpoint; `answer` is what the endpoint says next."""

    url: str = ""
    discovery: tuple[int, Any] = (200, None)
    metadata: tuple[int, Any] = (404, {})
    answer: tuple[int, Any] = (200, None)
    expires_in: Any = 3600
    date: str | None = None
    #: Looks at a token request before `answer`; None lets it pass.
    judge: Callable[[dict[str, str]], tuple[int, Any] | None] = lambda form: None
    forms: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def reply(self, path: str, body: bytes) -> tuple[int, Any]:
        self.paths.append(path)
        if path == "/token":
            self.forms.append(dict(urllib.parse.parse_qsl(body.decode())))
            status, document = self.judge(self.forms[-1]) or self.answer
            number = len(self.forms)
            return status, document or {"access_token": f"token-{number}", "expires_in": self.expires_in}
        status, document = self.metadata if path == "/fhir/metadata" else self.discovery
        return status, document if document is not None else {"token_endpoint": f"{self.url}/token"}


@pytest.fixture
def server() -> Iterator[TokenServer]:
    state = TokenServer()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, document = state.reply(self.path, self.rfile.read(int(self.headers.get("content-length") or 0)))
            self.send_response_only(status)
            if state.date:
                self.send_header("Date", state.date)
            self.end_headers()
            self.wfile.write(document if isinstance(document, bytes) else json.dumps(document).encode())

        do_GET = do_POST = answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@dataclass
class Client:
    site: SiteSettings
    clock: ManualClock
    transport: Transport
    tokens: SmartClient

    def token(self) -> str:
        return self.tokens.current(self.transport)


@pytest.fixture
def client(server: TokenServer, tmp_path: Path) -> Iterator[Client]:
    clock = ManualClock(NOW)
    site = site_with(tmp_path, pem(RSA_KEY), url=server.url, key_id="kid-1")
    with open_session(site, clock, policy=RetryPolicy(attempts=1)) as session:
        yield Client(site, clock, session.transport, session.tokens)


def test_the_assertion_obeys_rule_9(server: TokenServer, client: Client) -> None:
    assert client.token() == "token-1"
    form = server.forms[0]
    assert form["grant_type"] == "client_credentials"
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    assert form["scope"] == "system/Patient.read system/Observation.read"
    audience = f"{server.url}/token"
    claims = jwt.decode(
        form["client_assertion"],
        RSA_KEY.public_key(),
        algorithms=["RS384"],
        audience=audience,
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},  # of the real clock; ours is below
    )
    now = NOW.timestamp()
    assert claims["iss"] == claims["sub"] == "client-1"
    assert claims["iat"] < now
    assert claims["nbf"] < now
    assert now < claims["exp"] <= min(claims["iat"], claims["nbf"]) + 300
    assert 16 <= len(claims["jti"]) <= 151


def test_each_assertion_is_used_once(client: Client) -> None:
    claims = [jwt.decode(client.tokens.assertion("a"), options={"verify_signature": False}) for _ in range(3)]
    assert len({claim["jti"] for claim in claims}) == 3


# --- two keys, and two clocks


def kid_of(form: dict[str, str]) -> str:
    return str(jwt.get_unverified_header(form["client_assertion"])["kid"])


def rotating_site(tmp_path: Path, url: str) -> SiteSettings:
    previous = tmp_path / "previous"
    previous.touch(mode=0o600)
    previous.write_bytes(json.dumps(jwk(RSA_KEY, "old")).encode())
    return site_with(tmp_path, pem(EC_KEY), url=url, key_id="new", previous_private_key_file=previous)


def test_the_previous_key_is_used_until_the_site_knows_the_new_one(
    server: TokenServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = {"old"}
    server.judge = lambda form: None if kid_of(form) in known else (400, {"error": "invalid_client"})
    clock = ManualClock(NOW)
    with open_session(rotating_site(tmp_path, server.url), clock) as session:
        session.tokens.current(session.transport)
        assert [kid_of(form) for form in server.forms] == ["new", "old"]
        assert "does not know the key with kid new yet; the previous one, old, is used" in caplog.text
        clock.advance(4000)
        session.tokens.current(session.transport)
        assert [kid_of(form) for form in server.forms[2:]] == ["old"]
    known.add("new")
    with open_session(rotating_site(tmp_path, server.url), clock) as session:
        session.tokens.current(session.transport)
    assert kid_of(server.forms[-1]) == "new"


def test_when_neither_key_is_known_the_new_one_is_named(server: TokenServer, tmp_path: Path) -> None:
    server.answer = (401, {"error": "invalid_client"})
    with (
        open_session(rotating_site(tmp_path, server.url), ManualClock(NOW)) as session,
        pytest.raises(AuthenticationRefused) as caught,
    ):
        session.tokens.current(session.transport)
    assert "kid new" in caught.value.advice
    assert len(server.forms) == 2


def test_another_refusal_than_of_the_key_is_not_tried_with_the_other(server: TokenServer, tmp_path: Path) -> None:
    server.answer = (400, {"error": "invalid_scope"})
    with (
        open_session(rotating_site(tmp_path, server.url), ManualClock(NOW)) as session,
        pytest.raises(AuthenticationRefused, match="resource_types"),
    ):
        session.tokens.current(session.transport)
    assert len(server.forms) == 1


def test_two_keys_of_one_set(tmp_path: Path) -> None:
    content = json.dumps({"keys": [jwk(RSA_KEY, "old"), jwk(EC_KEY, "new")]}).encode()
    site = site_with(tmp_path, content, key_id="new", previous_key_id="old")
    assert [(key.key_id, key.algorithm) for key in load_signing_keys(site)] == [("new", "ES384"), ("old", "RS384")]


@pytest.mark.parametrize("difference", [400, -400])
def test_assertions_go_by_the_servers_clock_once_it_has_refused_ours(
    server: TokenServer, client: Client, caplog: pytest.LogCaptureFixture, difference: int
) -> None:
    server_time = NOW + timedelta(seconds=difference)
    server.date = server_time.strftime("%a, %d %b %Y %H:%M:%S GMT")

    def judge(form: dict[str, str]) -> tuple[int, Any] | None:
        claims = jwt.decode(form["client_assertion"], options={"verify_signature": False})
        at = server_time.timestamp()
        good = claims["iat"] <= at and claims["nbf"] <= at < claims["exp"] <= at + 300
        return None if good else (400, {"error": "invalid_client"})

    server.judge = judge
    assert client.token() == "token-2"
    assert f"differs from that of site site_a by {difference} s" in caplog.text
    client.clock.advance(3600)
    server_time += timedelta(seconds=3600)
    assert client.token() == "token-3"


def test_the_audience_can_be_set(server: TokenServer, tmp_path: Path) -> None:
    site = site_with(tmp_path, pem(EC_KEY), url=server.url, audience="https://inside.example.org/token")
    with open_session(site, ManualClock(NOW)) as session:
        session.tokens.current(session.transport)
    claims = jwt.decode(server.forms[0]["client_assertion"], options={"verify_signature": False})
    assert claims["aud"] == "https://inside.example.org/token"


@pytest.mark.parametrize(
    ("expires_in", "kept", "renewed"),
    [(3600, 3530, 3545), (300, 235, 245), (10, 7, 9), (None, 235, 245), ("600", 530, 545), ("soon", 235, 245)],
)
def test_a_token_is_kept_and_renewed_early(
    server: TokenServer, client: Client, expires_in: Any, kept: float, renewed: float
) -> None:
    server.expires_in = expires_in
    assert client.token() == "token-1"
    client.clock.advance(kept)
    assert client.token() == "token-1"
    client.clock.advance(renewed - kept)
    assert client.token() == "token-2"
    assert server.paths.count("/fhir/.well-known/smart-configuration") == 1


def test_of_several_threads_one_renews(server: TokenServer, client: Client) -> None:
    rejected = client.token()
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(client.tokens.renew(rejected, client.transport))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["token-2"] * 8
    assert len(server.forms) == 2


def test_what_was_not_granted_is_named_once(
    server: TokenServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = (200, {"access_token": "t", "expires_in": 60, "scope": "system/Patient.read"})
    with caplog.at_level(logging.WARNING):
        client.token()
        client.clock.advance(100)
        client.token()
    assert caplog.text.count("no read access to: Observation") == 1
    assert client.tokens.missing_types() == ("Observation",)


def test_invalid_client_says_the_four_things_to_check(server: TokenServer, client: Client) -> None:
    server.answer = (400, {"error": "invalid_client", "error_description": None})
    server.date = (NOW + timedelta(seconds=400)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    with pytest.raises(AuthenticationRefused, match="invalid_client") as caught:
        client.token()
    for hint in ("client-1", "kid-1", "hours to days", f"{server.url}/token", "differs from the server's by 400 s"):
        assert hint in caught.value.advice


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((400, {"error": "invalid_scope"}), AuthenticationRefused),
        ((401, b"<html>"), AuthenticationRefused),
        ((404, {}), RemoteRefused),
        ((500, {}), RemoteUnavailable),
        ((429, {}), RemoteUnavailable),
        ((200, {"token": "x"}), ProtocolError),
        ((200, {"access_token": "a\r\nX-Evil: 1"}), ProtocolError),
        ((200, [1]), ProtocolError),
    ],
)
def test_refusals_of_the_token_endpoint(
    server: TokenServer, client: Client, answer: tuple[int, Any], error: type[EpicOmopError]
) -> None:
    server.answer = answer
    with pytest.raises(error) as caught:
        client.token()
    sent = server.forms[0]["client_assertion"]
    assert sent not in str(caught.value)


def test_a_token_endpoint_on_another_host_gets_nothing(server: TokenServer, client: Client) -> None:
    server.discovery = (200, {"token_endpoint": "https://evil.example/token"})
    with pytest.raises(UnsafeRemote):
        client.token()


def statement(uri: Any) -> dict[str, Any]:
    parts = [{"url": "authorize", "valueUri": "https://h/authorize"}, {"url": "token", "valueUri": uri}]
    security = {"extension": [{"url": OAUTH_URIS, "extension": parts}]}
    return {"resourceType": "CapabilityStatement", "rest": [{"mode": "server", "security": security}]}


@pytest.mark.parametrize("discovery", [(404, {}), (200, b"<html>"), (200, {"issuer": "x"}), (403, {})])
def test_the_capability_statement_stands_in(server: TokenServer, client: Client, discovery: tuple[int, Any]) -> None:
    server.discovery = discovery
    server.metadata = (200, statement("https://h/token"))
    assert discover(client.transport, f"{server.url}/fhir").token_endpoint == "https://h/token"


@pytest.mark.parametrize("metadata", [(404, {}), (200, {}), (200, {"rest": 1}), (200, statement(5)), (200, b"x")])
def test_no_token_endpoint_at_all(server: TokenServer, client: Client, metadata: tuple[int, Any]) -> None:
    server.discovery = (404, {})
    server.metadata = metadata
    with pytest.raises(ProtocolError, match="names a token endpoint"):
        discover(client.transport, f"{server.url}/fhir")


def test_a_server_in_trouble_is_not_taken_for_one_without_discovery(server: TokenServer, client: Client) -> None:
    server.discovery = (503, {})
    with pytest.raises(RemoteUnavailable):
        discover(client.transport, f"{server.url}/fhir")
    assert "/fhir/metadata" not in server.paths


def test_a_site_without_a_server() -> None:
    with (
        pytest.raises(ConfigurationError, match="no fhir_url"),
        open_session(SiteSettings(name="site_a"), ManualClock(NOW)),
    ):
        pass


def test_tokens_do_not_show_themselves(client: Client) -> None:
    client.token()
    assert "token-1" not in repr(client.tokens._token)
