"""Commands `keys new`, `jwks` and `check`; the hosted JWK Set is on a real server on loopback."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner, Result

from pipeline.commands import keys as command
from pipeline.core.clock import SystemClock
from pipeline.core.errors import ConfigurationError, EpicOmopError, UsageError
from pipeline.core.findings import Finding
from pipeline.core.settings import SiteSettings, register_site
from pipeline.extract.smart.key_files import check_hosted_keys, key_set, new_key, write_new_key
from pipeline.extract.smart.keys import SigningKey, key_from_file

PRIVATE_MEMBERS = ("d", "p", "q", "dp", "dq", "qi")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments], terminal_width=200)


@pytest.fixture
def rsa_file(tmp_path: Path) -> Path:
    write_new_key(tmp_path / "rsa.pem", new_key("rsa", 2048))
    return tmp_path / "rsa.pem"


@pytest.fixture
def ec_file(tmp_path: Path) -> Path:
    write_new_key(tmp_path / "ec.pem", new_key("ec"))
    return tmp_path / "ec.pem"


@pytest.mark.parametrize(("kind", "algorithm"), [("rsa", "RS384"), ("ec", "ES384")])
def test_a_new_key_is_strong_closed_and_usable(tmp_path: Path, kind: str, algorithm: str) -> None:
    file = tmp_path / "keys" / "site.pem"
    old = os.umask(0)
    try:
        told = run("new", "--out", file, "--type", kind)
    finally:
        os.umask(old)
    assert told.exit_code == 0, told.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    key = key_from_file(file)
    assert (key.algorithm, key.key_id in told.output) == (algorithm, True)
    if isinstance(key.private_key, rsa.RSAPrivateKey):
        assert key.private_key.key_size == 3072
    assert "PRIVATE" not in told.output


def test_a_key_is_never_overwritten_and_never_weak(rsa_file: Path, tmp_path: Path) -> None:
    before = rsa_file.read_bytes()
    assert isinstance(run("new", "--out", rsa_file).exception, UsageError)
    assert rsa_file.read_bytes() == before
    weak = run("new", "--out", tmp_path / "weak.pem", "--bits", "1024")
    assert isinstance(weak.exception, UsageError)
    assert not (tmp_path / "weak.pem").exists()


def test_the_jwk_set_holds_public_parts_and_verifies(rsa_file: Path, ec_file: Path, tmp_path: Path) -> None:
    told = run("jwks", rsa_file, ec_file)
    document = json.loads(told.output)
    keys = [key_from_file(rsa_file), key_from_file(ec_file)]
    assert [entry["kid"] for entry in document["keys"]] == [key.key_id for key in keys]
    for entry, key in zip(document["keys"], keys, strict=True):
        assert not set(PRIVATE_MEMBERS) & entry.keys()
        assert jwt.decode(key.sign({"a": 1}), jwt.PyJWK(entry), algorithms=[key.algorithm]) == {"a": 1}
    run("jwks", rsa_file, "--out", tmp_path / "jwks.json")
    assert json.loads((tmp_path / "jwks.json").read_text())["keys"] == document["keys"][:1]
    assert isinstance(run("jwks", rsa_file, rsa_file).exception, UsageError)


def test_private_jwks_lose_their_private_parts(rsa_file: Path, tmp_path: Path) -> None:
    private = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key_from_file(rsa_file).private_key))  # type: ignore[arg-type]  # RSA
    file = tmp_path / "private.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"keys": [{**private, "kid": "mine"}]}))
    (entry,) = json.loads(run("jwks", file).output)["keys"]
    assert entry["kid"] == "mine"
    assert not set(PRIVATE_MEMBERS) & entry.keys()


def test_what_is_wrong_with_a_key_file(rsa_file: Path, ec_file: Path, tmp_path: Path) -> None:
    good = run("check", ec_file)
    assert good.exit_code == 0
    assert "P-384" in good.output
    rsa_file.chmod(0o644)
    weak = tmp_path / "weak.pem"
    weak.touch(mode=0o600)
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    weak.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    told = run("check", ec_file, rsa_file, weak)
    assert told.exit_code == 1
    words = " ".join(told.output.replace("│", " ").split())
    assert "can be used by others (mode 0644)" in words
    assert "1024 bits; at least 2048" in words
    assert isinstance(run("check").exception, UsageError)


# --- the hosted set


@contextmanager
def hosting(document: Any, status: int = 200) -> Iterator[str]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(str(self.headers).lower())
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jwks.json"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not [headers for headers in seen if "authorization" in headers or "epic-client-id" in headers]


TEST_SITE = SiteSettings(name="site_a", test_mode=True)


def checked(key: SigningKey, document: Any, status: int = 200) -> list[Finding]:
    with hosting(document, status) as url:
        return check_hosted_keys(url, [key], SystemClock(), TEST_SITE)


def test_a_good_set_is_found_good(rsa_file: Path, ec_file: Path) -> None:
    keys = [key_from_file(rsa_file), key_from_file(ec_file)]
    with hosting(key_set(keys)) as url:
        findings = check_hosted_keys(url, keys, SystemClock(), TEST_SITE)
    assert [finding.state for finding in findings] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kid": "other"}, "no key with this kid; there are: other"),
        ({"n": "AQAB"}, "another key under this kid"),
        ({"alg": "RS256"}, "its `alg` is 'RS256', not 'RS384'"),
        ({"use": "enc"}, "its `use` is 'enc', not 'sig'"),
        ({"d": "secret-part"}, "publishes the private part"),
    ],
)
def test_what_is_wrong_with_a_hosted_key(rsa_file: Path, change: dict[str, str], told: str) -> None:
    key = key_from_file(rsa_file)
    findings = checked(key, {"keys": [{**key.public_jwk(), **change}]})
    assert [finding for finding in findings if finding.state == "failed" and told in finding.found], findings
    assert "secret-part" not in str(findings)


@pytest.mark.parametrize(
    ("document", "status", "told"),
    [
        ({}, 404, "404"),
        (b"<html>", 200, "not a JSON object"),
        ({"key": []}, 200, "not a valid JWK Set"),
        ({"keys": [1]}, 200, "not a valid JWK Set"),
        ({"keys": []}, 200, "no key with this kid; there are: none"),
        (b"x" * (2 << 20), 200, "longer than"),
    ],
)
def test_what_is_no_set(rsa_file: Path, document: Any, status: int, told: str) -> None:
    (finding,) = checked(key_from_file(rsa_file), document, status)
    assert finding.state == "failed"
    assert told in finding.found


def test_two_keys_under_one_kid(rsa_file: Path) -> None:
    entry = key_from_file(rsa_file).public_jwk()
    (finding,) = checked(key_from_file(rsa_file), {"keys": [entry, entry]})
    assert finding.found == "more than one key with this kid"


def test_a_set_over_plain_http_is_none(rsa_file: Path) -> None:
    with hosting({}) as url:
        (finding,) = check_hosted_keys(url, [key_from_file(rsa_file)], SystemClock(), None)
    assert "does not begin with https" in finding.found


def test_the_keys_of_a_site_and_their_url(
    rsa_file: Path, ec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [key_from_file(ec_file), key_from_file(rsa_file)]
    with hosting(key_set(keys[:1])) as url:
        entry = {
            "fhir_url": "http://127.0.0.1:9/fhir",
            "client_id": "c",
            "private_key_file": "ec.pem",
            "previous_private_key_file": "rsa.pem",
            "jwks_url": url,
            "groups": ["g"],
            "test_mode": True,
        }
        register_site(tmp_path, "north", entry)
        monkeypatch.setenv("EPIC_OMOP_HOME", str(tmp_path))
        told = run("check", "--site", "north")
        assert told.exit_code == 1  # the previous key is not hosted any more
        assert told.output.count("no key with this kid") == 1
        assert [entry["kid"] for entry in json.loads(run("jwks", "--site", "north").output)["keys"]] == [
            key.key_id for key in keys
        ]
    assert isinstance(run("check", "--site", "south").exception, ConfigurationError)
    assert isinstance(run("jwks", tmp_path / "none.pem").exception, EpicOmopError)
