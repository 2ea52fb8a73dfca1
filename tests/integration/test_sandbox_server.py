"""The simulated Epic over real HTTP: each rule with what it allows and what it refuses."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from pipeline.core.clock import ManualClock
from pipeline.core.errors import UsageError
from pipeline.sandbox.config import RegisteredClient, SandboxConfig
from pipeline.sandbox.server import RunningSandbox
from pipeline.sandbox.sources import FolderSource, GeneratedSource

START = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
CLIENT = "client-1"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP384R1())
STRANGE_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_PEM = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
EC_JWK = {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "ec-1"}
KICK_OFF = {"Accept": "application/fhir+json", "Prefer": "respond-async"}


@dataclass(frozen=True)
class Site:
    """A running sandbox and a client of it."""

    sandbox: RunningSandbox
    clock: ManualClock
    http: httpx.Client

    def assertion(
        self, key: Any = RSA_KEY, algorithm: str = "RS384", headers: dict[str, str] | None = None, **claims: Any
    ) -> str:
        now = int(self.clock.now().timestamp())
        payload = {
            "iss": CLIENT,
            "sub": CLIENT,
            "aud": self.sandbox.token_url,
            "jti": str(uuid.uuid4()),
            "exp": now + 240,
            "iat": now - 5,
            **claims,
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, key, algorithm, headers=headers)

    def ask_token(self, assertion: str | None = None, **form: str) -> httpx.Response:
        fields = {
            "grant_type": "client_credentials",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": assertion or self.assertion(),
            **form,
        }
        return self.http.post(self.sandbox.token_url, data=fields)

    def bearer(self, **form: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.ask_token(**form).json()['access_token']}"}

    def kick_off(self, group: str = "all", types: str = "Patient", **headers: str) -> httpx.Response:
        url = f"{self.sandbox.fhir_url}/Group/{group}/$export"
        sent = {**KICK_OFF, **self.bearer(), **headers}
        return self.http.get(url, params={"_type": types}, headers=sent)

    def exported(self, group: str = "all", types: str = "Patient") -> tuple[str, dict[str, Any]]:
        """Status URL and manifest of a whole export (the fixture's sandbox is complete at the second request)."""
        status = self.kick_off(group, types).headers["content-location"]
        self.http.get(status, headers=self.bearer())
        return status, self.http.get(status, headers=self.bearer()).json()


def config(clock: ManualClock, **changes: Any) -> SandboxConfig:
    plain = SandboxConfig(
        groups={"all": GeneratedSource(30, 1), "other": GeneratedSource(30, 1, 1, 2)},
        clients=(
            RegisteredClient(CLIENT, (RSA_PEM, EC_JWK)),
            RegisteredClient("narrow", (RSA_PEM,), ("system/Patient.read", "system/Encounter.rs")),
        ),
        clock=clock,
        resources_per_file=100,
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def standing() -> Iterator[Site]:
    """One sandbox for the tests that leave nothing behind: discovery and tokens."""
    clock = ManualClock(START)
    with RunningSandbox(config(clock)) as sandbox, httpx.Client() as http:
        yield Site(sandbox, clock, http)


@pytest.fixture
def site() -> Iterator[Site]:
    clock = ManualClock(START)
    with RunningSandbox(config(clock)) as sandbox, httpx.Client() as http:
        yield Site(sandbox, clock, http)


@pytest.fixture
def site_with() -> Iterator[Callable[..., Site]]:
    opened: list[tuple[RunningSandbox, httpx.Client]] = []

    def make(**changes: Any) -> Site:
        clock = ManualClock(START)
        sandbox, http = RunningSandbox(config(clock, **changes)), httpx.Client()
        sandbox.__enter__()
        opened.append((sandbox, http))
        return Site(sandbox, clock, http)

    yield make
    for sandbox, http in opened:
        http.close()
        sandbox.__exit__(None, None, None)


def assert_outcome(answer: httpx.Response, status: int, text: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/fhir+json")
    body = answer.json()
    assert body["resourceType"] == "OperationOutcome"
    assert text in body["issue"][0]["details"]["text"]


# Discovery


def test_smart_configuration(standing: Site) -> None:
    found = standing.http.get(f"{standing.sandbox.fhir_url}/.well-known/smart-configuration").json()
    assert found["token_endpoint"] == standing.sandbox.token_url
    assert found["token_endpoint_auth_signing_alg_values_supported"] == ["RS384", "ES384"]


def test_capability_statement(standing: Site) -> None:
    found = standing.http.get(f"{standing.sandbox.fhir_url}/metadata").json()
    resources = {each["type"]: each for each in found["rest"][0]["resource"]}
    assert found["fhirVersion"] == "4.0.1"
    assert resources["Group"]["operation"][0]["name"] == "group-export"
    assert {"Patient", "Observation"} <= resources.keys()


def test_unknown_path_is_an_outcome(standing: Site) -> None:
    assert_outcome(standing.http.get(f"{standing.sandbox.fhir_url}/Nonsense"), 404)
    assert_outcome(standing.http.post(f"{standing.sandbox.fhir_url}/metadata"), 405)


# Token endpoint


def test_token(standing: Site) -> None:
    answer = standing.ask_token(scope="system/Patient.read")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("bearer", 3600, "system/Patient.read")
    assert body["access_token"].count(".") == 0


def test_elliptic_curve_key_with_its_kid(standing: Site) -> None:
    assert standing.ask_token(standing.assertion(EC_KEY, "ES384", {"kid": "ec-1"})).status_code == 200
    refused = standing.ask_token(standing.assertion(EC_KEY, "ES384", {"kid": "other"}))
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client")


def test_rsa_jwk_with_its_kid(site_with: Callable[..., Site]) -> None:
    jwk = {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "rsa-1"}
    site = site_with(clients=(RegisteredClient(CLIENT, (jwk,)),))
    assert site.ask_token(site.assertion(headers={"kid": "rsa-1"})).status_code == 200
    assert site.ask_token(site.assertion()).json()["error"] == "invalid_client"


NOW = int(START.timestamp())


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "nobody"}, "unknown client"),
        ({"sub": "someone-else"}, "iss is not sub"),
        ({"aud": "https://elsewhere.example/token"}, "another audience"),
        ({"aud": None}, "no audience"),
        ({"exp": NOW - 1}, "expired"),
        ({"exp": NOW}, "expires now"),
        ({"exp": NOW + 301}, "too long"),
        ({"exp": None}, "no expiry"),
        ({"exp": "tomorrow"}, "no number"),
        ({"iat": NOW + 10}, "issued in the future"),
        ({"nbf": NOW + 10}, "not valid yet"),
        ({"jti": None}, "no jti"),
        ({"jti": "x" * 152}, "long jti"),
    ],
)
def test_assertion_is_refused(standing: Site, claims: dict[str, Any], reason: str) -> None:
    answer = standing.ask_token(standing.assertion(**claims))
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_client", "error_description": None}), reason


def test_assertion_at_the_limits(standing: Site) -> None:
    assert standing.ask_token(standing.assertion(exp=NOW + 300, iat=NOW, nbf=NOW, jti="x" * 151)).status_code == 200


def test_jti_is_used_once(standing: Site) -> None:
    assertion = standing.assertion()
    assert standing.ask_token(assertion).status_code == 200
    assert standing.ask_token(assertion).json()["error"] == "invalid_client"


@pytest.mark.parametrize(("key", "algorithm"), [(STRANGE_KEY, "RS384"), (RSA_KEY, "RS256"), (RSA_KEY, "PS384")])
def test_wrong_key_or_algorithm(standing: Site, key: Any, algorithm: str) -> None:
    assert standing.ask_token(standing.assertion(key, algorithm)).json()["error"] == "invalid_client"


def test_public_key_as_hmac_secret(standing: Site) -> None:
    forged = jwt.encode({"iss": CLIENT, "sub": CLIENT}, "s" * 64, "HS384")
    assert standing.ask_token(forged).json()["error"] == "invalid_client"
    assert standing.ask_token("not.a.jwt").json()["error"] == "invalid_client"


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "unsupported_grant_type"),
        ({"client_assertion_type": "jwt"}, "invalid_request"),
        ({"client_assertion": ""}, "invalid_request"),
        ({"scope": "system/Patient.write"}, "invalid_scope"),
    ],
)
def test_token_request_is_refused(standing: Site, form: dict[str, str], error: str) -> None:
    answer = standing.ask_token(**form)
    assert (answer.status_code, answer.json()["error"]) == (400, error)


def test_token_request_that_is_no_form(standing: Site) -> None:
    answer = standing.http.post(standing.sandbox.token_url, json={"grant_type": "client_credentials"})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("system/Patient.read system/Observation.read", {"system/Patient.read"}),
        ("system/Patient.rs", {"system/Patient.rs"}),
        ("system/*.read", {"system/Patient.read", "system/Encounter.rs"}),
        ("", {"system/Patient.read", "system/Encounter.rs"}),
    ],
)
def test_granted_scopes_are_the_intersection(standing: Site, asked: str, granted: set[str]) -> None:
    answer = standing.ask_token(standing.assertion(iss="narrow", sub="narrow"), scope=asked)
    assert set(answer.json()["scope"].split()) == granted


# Kick-off


def test_kick_off(site: Site) -> None:
    answer = site.kick_off()
    assert (answer.status_code, answer.content) == (202, b"")
    assert answer.headers["content-location"].startswith(site.sandbox.fhir_url)


@pytest.mark.parametrize("authorization", ["", "Bearer nonsense", "Basic abc"])
def test_kick_off_needs_a_token(site: Site, authorization: str) -> None:
    answer = site.kick_off(Authorization=authorization)
    assert_outcome(answer, 401)
    assert "Bearer" in answer.headers["www-authenticate"]


def test_token_expires(site: Site) -> None:
    bearer = site.bearer()
    site.clock.advance(3599)
    assert site.kick_off(**bearer).status_code == 202
    site.clock.advance(1)
    assert_outcome(site.kick_off("other", **bearer), 401)


def test_unknown_group(site: Site) -> None:
    assert_outcome(site.kick_off("nobody"), 404)


@pytest.mark.parametrize(("header", "value"), [("Accept", "application/json"), ("Prefer", "return=minimal")])
def test_kick_off_headers(site: Site, header: str, value: str) -> None:
    assert_outcome(site.kick_off(**{header: value}), 400, header)


def test_type_is_required_and_checked(site: Site) -> None:
    assert_outcome(site.kick_off(types=""), 400, "_type")
    assert_outcome(site.kick_off(types="Patient,Nonsense"), 400, "Nonsense")
    assert site.kick_off().status_code == 202, "a refused kick-off does not count for the window"


def test_parameters_that_are_not_supported(site_with: Callable[..., Site]) -> None:
    site = site_with(knows_since=None)
    url = f"{site.sandbox.fhir_url}/Group/all/$export?_type=Patient&_since=2026-01-01T00:00:00Z"
    assert_outcome(site.http.get(url, headers={**KICK_OFF, **site.bearer()}), 400, "_since")
    lenient = {**KICK_OFF, "Prefer": "respond-async, handling=lenient", **site.bearer()}
    assert site.http.get(url, headers=lenient).status_code == 202


def test_output_format(site: Site) -> None:
    url = f"{site.sandbox.fhir_url}/Group/all/$export?_type=Patient&_outputFormat="
    headers = {**KICK_OFF, **site.bearer()}
    assert_outcome(site.http.get(url + "text/csv", headers=headers), 400, "_outputFormat")
    assert site.http.get(url + "application/fhir%2Bndjson", headers=headers).status_code == 202


def test_scope_is_needed_for_each_type(site: Site) -> None:
    token = site.ask_token(site.assertion(iss="narrow", sub="narrow")).json()["access_token"]
    bearer = {"Authorization": f"Bearer {token}"}
    assert_outcome(site.kick_off(types="Patient,Observation", **bearer), 403, "Observation")
    assert site.kick_off(types="Patient,Encounter", **bearer).status_code == 202


def test_one_kick_off_in_a_window(site: Site) -> None:
    assert site.kick_off().status_code == 202
    again = site.kick_off()
    assert_outcome(again, 400, "requested this Group too recently")
    assert "retry-after" not in again.headers
    assert site.kick_off("other").status_code == 202, "another group has a window of its own"
    site.clock.advance(24 * 3600 - 1)
    assert_outcome(site.kick_off(), 400, "too recently")
    site.clock.advance(1)
    assert site.kick_off().status_code == 202


def test_deleting_a_job_does_not_open_the_window(site: Site) -> None:
    status = site.kick_off().headers["content-location"]
    site.http.delete(status, headers=site.bearer())
    assert_outcome(site.kick_off(), 400, "too recently")


def test_window_and_its_status_are_configurable(site_with: Callable[..., Site]) -> None:
    site = site_with(kickoff_window_seconds=60, too_recently_status=429)
    site.kick_off()
    assert_outcome(site.kick_off(), 429, "too recently")
    site.clock.advance(60)
    assert site.kick_off().status_code == 202


def test_moving_the_sandbox_clock_opens_the_window(site: Site) -> None:
    site.kick_off()
    moved = site.http.post(f"{site.sandbox.base_url}/sandbox/clock", json={"advance_seconds": 86_400}).json()
    assert moved == {"now": "2026-11-02T12:00:00+00:00", "day": 1}
    assert site.kick_off().status_code == 202, "assertions are judged by the real time"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"advance_seconds": -1}', b'{"advance_seconds": true}', b"{"])
def test_clock_refuses_nonsense(site: Site, body: bytes) -> None:
    assert_outcome(site.http.post(f"{site.sandbox.base_url}/sandbox/clock", content=body), 400, "advance_seconds")


# Status and manifest


def test_status_then_manifest(site_with: Callable[..., Site]) -> None:
    site = site_with(polls_until_complete=2, retry_after_seconds=7)
    kick_off = site.kick_off(types="Patient,Observation")
    status = kick_off.headers["content-location"]
    for _ in range(2):
        waiting = site.http.get(status, headers=site.bearer())
        assert (waiting.status_code, waiting.content) == (202, b"")
        assert waiting.headers["retry-after"] == "7"
        assert waiting.headers["x-progress"]
    answer = site.http.get(status, headers=site.bearer())
    assert answer.headers["content-type"] == "application/json"
    manifest = answer.json()
    assert manifest["transactionTime"] == "2026-11-01T12:00:00Z"
    assert manifest["request"] == str(kick_off.request.url)
    assert manifest["requiresAccessToken"] is True
    assert manifest["error"] == []
    assert manifest["output"][0]["type"] == "Patient"
    assert all(0 < each["count"] <= 100 for each in manifest["output"])
    assert len([each for each in manifest["output"] if each["type"] == "Observation"]) > 1


def test_export_takes_its_time(site_with: Callable[..., Site]) -> None:
    site = site_with(polls_until_complete=0, seconds_until_complete=600)
    status = site.kick_off().headers["content-location"]
    assert site.http.get(status, headers=site.bearer()).status_code == 202
    site.clock.advance(599)
    assert site.http.get(status, headers=site.bearer()).status_code == 202
    site.clock.advance(1)
    assert site.http.get(status, headers=site.bearer()).status_code == 200


def test_type_without_resources_has_no_output(site: Site) -> None:
    assert site.exported(types="ImagingStudy")[1]["output"] == []


def test_job_belongs_to_its_client(site: Site) -> None:
    status, manifest = site.exported()
    token = site.ask_token(site.assertion(iss="narrow", sub="narrow")).json()["access_token"]
    other = {"Authorization": f"Bearer {token}"}
    assert_outcome(site.http.get(status, headers=other), 404)
    assert_outcome(site.http.get(manifest["output"][0]["url"], headers=other), 404)
    assert_outcome(site.http.delete(status, headers=other), 404)
    assert_outcome(site.http.get(status), 401)
    assert_outcome(site.http.delete(status), 401)


def test_delete(site: Site) -> None:
    status, manifest = site.exported()
    assert site.http.delete(status, headers=site.bearer()).status_code == 202
    assert_outcome(site.http.get(status, headers=site.bearer()), 404)
    assert_outcome(site.http.delete(status, headers=site.bearer()), 404)
    assert_outcome(site.http.get(manifest["output"][0]["url"], headers=site.bearer()), 404)


def test_source_that_fails_is_an_outcome(site_with: Callable[..., Site]) -> None:
    class Failing:
        def resource_types(self) -> Collection[str]:
            return ("Patient",)

        def lines(self, types: Collection[str], first_day: dt.date, day: int) -> Iterator[tuple[str, bytes]]:
            raise OSError("disk")

    site = site_with(groups={"all": Failing()}, polls_until_complete=0)
    status = site.kick_off().headers["content-location"]
    assert_outcome(site.http.get(status, headers=site.bearer()), 500, "OSError")


# Files


def test_files_hold_what_the_source_gives(site: Site) -> None:
    _, manifest = site.exported(types="Patient,Condition,Observation")
    bearer = site.bearer()
    for kind in ("Patient", "Condition", "Observation"):
        outputs = [each for each in manifest["output"] if each["type"] == kind]
        answers = [site.http.get(each["url"], headers=bearer) for each in outputs]
        expected = [line for _, line in GeneratedSource(30, 1).lines([kind], START.date(), 0)]
        assert b"".join(answer.content for answer in answers).split(b"\n")[:-1] == expected
        assert [each["count"] for each in outputs] == [answer.content.count(b"\n") for answer in answers]
        assert all(answer.headers["content-type"] == "application/fhir+ndjson" for answer in answers)


def test_file_needs_a_token(site: Site) -> None:
    _, manifest = site.exported()
    assert_outcome(site.http.get(manifest["output"][0]["url"]), 401)
    site.sandbox.state.tokens.revoke_all()
    assert_outcome(site.http.get(manifest["output"][0]["url"], headers={"Authorization": "Bearer x"}), 401)


@pytest.mark.parametrize("name", ["000009", "..%2Fstate.json", "000001.ndjson"])
def test_unknown_file(site: Site, name: str) -> None:
    status, _ = site.exported()
    assert_outcome(site.http.get(f"{status}/{name}", headers=site.bearer()), 404)


def test_gzip_only_when_asked_for(site: Site) -> None:
    _, manifest = site.exported()
    url, bearer = manifest["output"][0]["url"], site.bearer()
    plain = site.http.get(url, headers={**bearer, "Accept-Encoding": "identity"})
    refused = site.http.get(url, headers={**bearer, "Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in plain.headers
    assert "content-encoding" not in refused.headers
    with site.http.stream("GET", url, headers={**bearer, "Accept-Encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == plain.content == refused.content


def test_range(site: Site) -> None:
    _, manifest = site.exported()
    url, bearer = manifest["output"][0]["url"], site.bearer()
    whole = site.http.get(url, headers={**bearer, "Accept-Encoding": "identity"}).content
    part = site.http.get(url, headers={**bearer, "Range": "bytes=1000-"})
    assert part.status_code == 206
    assert part.content == whole[1000:]
    assert part.headers["content-range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
    assert site.http.get(url, headers={**bearer, "Range": "bytes=0-9"}).content == whole[:10]
    beyond = site.http.get(url, headers={**bearer, "Range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416


def test_next_day_is_mostly_unchanged(site: Site) -> None:
    def lines() -> set[bytes]:
        _, manifest = site.exported(types="Patient,Encounter,Condition,Observation")
        bodies = [site.http.get(each["url"], headers=site.bearer()).content for each in manifest["output"]]
        return set(b"".join(bodies).split(b"\n"))

    first = lines()
    site.http.post(f"{site.sandbox.base_url}/sandbox/clock", json={"advance_seconds": 25 * 86_400})
    later = lines()
    assert first != later
    assert len(first & later) > 0.6 * len(first), "25 days later"


# Folders


def test_folder_is_served_byte_for_byte(site_with: Callable[..., Site], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    patients = b'{"resourceType":"Patient","id":"1"}\r\n\n{"cut":\n\xff\xfe no text\n{"last":"no newline"}'
    (folder / "Patient.000.ndjson").write_bytes(patients)
    (folder / "ObservationLabs_1.ndjson.gz").write_bytes(gzip.compress(b'{"a":1}\n'))
    (folder / "export7.ndjson").write_bytes(b'broken\n{"resourceType":"Basic","id":"b"}\n')
    (folder / "readme.txt").write_text("not served")
    source = FolderSource(folder)
    assert set(source.resource_types()) == {"Patient", "Observation", "Basic"}
    site = site_with(groups={"all": source})
    _, manifest = site.exported(types="Patient,Observation,Basic,Encounter")
    content = {each["type"]: each for each in manifest["output"]}
    assert {kind: each["count"] for kind, each in content.items()} == {"Patient": 4, "Observation": 1, "Basic": 2}
    body = site.http.get(content["Patient"]["url"], headers=site.bearer()).content
    assert body == patients + b"\n"


def test_folder_without_ndjson(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no NDJSON"):
        FolderSource(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        FolderSource(tmp_path / "missing")


# Restart


def test_state_outlives_a_restart(tmp_path: Path) -> None:
    clock = ManualClock(START)
    kept = config(clock, state_dir=tmp_path / "state")
    with RunningSandbox(kept) as first, httpx.Client() as http:
        site = Site(first, clock, http)
        status, manifest = site.exported()
        unfinished = site.kick_off("other").headers["content-location"]
        http.post(f"{first.base_url}/sandbox/clock", json={"advance_seconds": 3600})
        body = http.get(manifest["output"][0]["url"], headers=site.bearer()).content
        old_bearer = site.bearer()
    with RunningSandbox(kept) as second, httpx.Client() as http:
        site = Site(second, clock, http)

        def moved(url: str) -> str:
            return url.replace(first.base_url, second.base_url)

        assert_outcome(http.get(moved(status), headers=old_bearer), 401)
        again = http.get(moved(status), headers=site.bearer()).json()
        assert [each["count"] for each in again["output"]] == [each["count"] for each in manifest["output"]]
        assert http.get(again["output"][0]["url"], headers=site.bearer()).content == body
        http.get(moved(unfinished), headers=site.bearer())
        assert http.get(moved(unfinished), headers=site.bearer()).status_code == 200
        assert_outcome(site.kick_off(), 400, "too recently")
        assert second.state.desk.clock.now() == START + dt.timedelta(hours=1)


# Command


def run_command(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "EPIC_OMOP_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    code = "from pipeline.commands.sandbox import app; app()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serve_command(tmp_path: Path, ending: signal.Signals) -> None:
    process = run_command(tmp_path, "serve", "--patients", "5", "--port", "0", "--site", "demo")
    try:
        assert process.stdout is not None
        assert "The simulated Epic is at http://127.0.0.1:" in process.stdout.readline()
        assert "entered in" in process.stdout.readline()
        assert "epic-omop run --site demo" in process.stdout.readline()
        entry = yaml.safe_load((tmp_path / "sites.yaml").read_text())["sites"]["demo"]
        key = Path(entry["private_key_file"])
        assert key.stat().st_mode & 0o777 == 0o600
        discovery = httpx.get(f"{entry['fhir_url']}/.well-known/smart-configuration").json()
        now = int(dt.datetime.now(dt.UTC).timestamp())
        claims = {"iss": entry["client_id"], "sub": entry["client_id"], "aud": discovery["token_endpoint"]}
        signed = jwt.encode({**claims, "jti": "1", "exp": now + 200}, key.read_bytes(), "RS384")
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": signed,
        }
        token = httpx.post(discovery["token_endpoint"], data=form).json()["access_token"]
        url = f"{entry['fhir_url']}/Group/{entry['groups'][0]}/$export"
        types = ",".join(entry["resource_types"])
        answer = httpx.get(url, params={"_type": types}, headers={**KICK_OFF, "Authorization": f"Bearer {token}"})
        assert answer.status_code == 202
    finally:
        process.send_signal(ending)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "has stopped" in output
    assert errors == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "/no/such/folder"], "There is no folder"),
        (["--data", ".", "--patients", "3"], "exclude each other"),
    ],
)
def test_serve_refuses(tmp_path: Path, arguments: list[str], text: str) -> None:
    process = run_command(tmp_path, "serve", *arguments)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert text in " ".join(errors.split())


def test_port_taken(site: Site) -> None:
    with pytest.raises(UsageError, match="cannot listen"):
        RunningSandbox(site.sandbox.state.config, port=int(site.sandbox.base_url.rsplit(":", 1)[1]))


def test_real_site_is_not_overwritten(tmp_path: Path) -> None:
    pem = RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    entry = {"fhir_url": "https://fhir.example", "client_id": "x", "private_key_file": "key.pem", "groups": ["g"]}
    (tmp_path / "sites.yaml").write_text(json.dumps({"sites": {"hospital": entry}}))
    process = run_command(tmp_path, "serve", "--site", "hospital", "--port", "0")
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "is a real site" in " ".join(errors.split())
    assert "https://fhir.example" in (tmp_path / "sites.yaml").read_text()


def test_generate_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run_command(tmp_path, "generate", "--patients", "5", "--seed", "2", "--out", str(out))
    assert first.communicate(timeout=30)[0].endswith(f"are in {out}.\n")
    expected = [line for _, line in GeneratedSource(5, 2).lines(["Patient"], dt.date(2026, 1, 1), 0)]
    assert (out / "Patient.ndjson").read_bytes().split(b"\n")[:-1] == expected
    again = run_command(tmp_path, "generate", "--patients", "5", "--out", str(out))
    again.communicate(timeout=30)
    assert again.returncode != 0
