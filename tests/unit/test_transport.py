"""The HTTP edge against a real server on loopback: retries, classification, tokens, addresses, limits."""

from __future__ import annotations

import gzip
import logging
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.clock import ManualClock
from pipeline.core.errors import (
    AcceptedWithoutAddress,
    AuthenticationRefused,
    ConfigurationError,
    CooldownActive,
    EpicOmopError,
    ExportGone,
    KickOffUnknown,
    ProtocolError,
    RemoteRefused,
    RemoteUnavailable,
    Unreachable,
    UnreadableStatus,
    UnsafeRemote,
)
from pipeline.core.settings import SiteSettings
from pipeline.extract.bulk import protocol
from pipeline.extract.bulk.protocol import KickOff, Manifest, ManifestFile, StillRunning
from pipeline.extract.http.transport import (
    RemoteRequest,
    RetryPolicy,
    StreamedResponse,
    Transport,
    plain_text,
    retry_after_seconds,
    shown_url,
)
from pipeline.extract.smart.session import EpicSession

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@dataclass
class Reply:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    #: Content-Length to claim; the connection is closed after the body.
    length: int | None = None
    before: Callable[[], None] = lambda: None


class Server:
    """Answers each path from its list of replies; the last one stays. Keeps what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                server.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
                replies = server.replies.get(self.path.partition("?")[0], [Reply(404)])
                reply = replies.pop(0) if len(replies) > 1 else replies[0]
                reply.before()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(reply.length or len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
                self.close_connection = reply.length is not None

            do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are expected
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def on(self, path: str, *replies: Reply) -> str:
        self.replies[path] = list(replies)
        return self.url + path


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def other_server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


def site_at(url: str, **more: Any) -> SiteSettings:
    values = {"client_id": "client-1", "private_key_env": "KEY", "groups": ("g1",), "test_mode": True, **more}
    return SiteSettings(name="site_a", fhir_url=f"{url}/fhir", **values)


@pytest.fixture
def transport(server: Server, clock: ManualClock) -> Iterator[Transport]:
    with Transport(site_at(server.url), clock, chance=random.Random(1)) as transport:
        yield transport


class Tokens:
    """A token source whose tokens are numbered."""

    def __init__(self) -> None:
        self.number = 1

    def current(self, transport: Transport) -> str:
        return f"token-{self.number}"

    def renew(self, rejected: str, transport: Transport) -> str:
        assert rejected == f"token-{self.number}"
        self.number += 1
        return f"token-{self.number}"


def session_of(transport: Transport) -> EpicSession:
    return EpicSession(transport._site, transport, Tokens())  # type: ignore[arg-type]  # only what a TokenSource has


def outcome(code: str, text: str = "", **issue: Any) -> bytes:
    entry = {"severity": "error", "code": code, "details": {"text": text}, **issue}
    return orjson.dumps({"resourceType": "OperationOutcome", "issue": [entry]})


# --- headers, retries


def test_a_request_names_the_client_and_asks_for_gzip_only(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(body=b'{"a": 1}'))
    answer = transport.fetch(RemoteRequest("The test", url, tokens=Tokens()))
    assert answer.json() == {"a": 1}
    headers = server.requests[0][2]
    assert headers["epic-client-id"] == "client-1"
    assert headers["accept-encoding"] == "gzip"
    assert headers["authorization"] == "Bearer token-1"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_trouble_is_waited_out(server: Server, transport: Transport, clock: ManualClock, status: int) -> None:
    url = server.on("/fhir/x", Reply(status), Reply(status), Reply())
    assert transport.fetch(RemoteRequest("The test", url)).status == 200
    assert len(clock.slept) == 2
    assert 0.5 <= clock.slept[0] <= 1 <= clock.slept[1] <= 2


def test_trouble_for_ever_ends(server: Server, transport: Transport, clock: ManualClock) -> None:
    url = server.on("/fhir/x", Reply(500))
    with pytest.raises(RemoteUnavailable, match=r"The test: the server answered 500\."):
        transport.fetch(RemoteRequest("The test", url))
    assert len(server.requests) == transport.policy.attempts == len(clock.slept) + 1


@pytest.mark.parametrize("status", [400, 403, 404, 410, 422, 301])
def test_a_refusal_is_not_repeated(server: Server, transport: Transport, status: int) -> None:
    url = server.on("/fhir/x", Reply(status, outcome("forbidden", "Not authorised.")))
    with pytest.raises(RemoteRefused, match="Not authorised") as caught:
        transport.fetch(RemoteRequest("The test", url))
    assert caught.value.status == status
    assert len(server.requests) == 1


def test_a_403_says_what_to_check(server: Server, transport: Transport) -> None:
    with pytest.raises(RemoteRefused, match="registration, not the token"):
        transport.fetch(RemoteRequest("The test", server.on("/fhir/x", Reply(403))))


def test_a_4xx_that_calls_itself_transient_is_retried(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(400, outcome("transient")), Reply())
    assert transport.fetch(RemoteRequest("The test", url)).status == 200


@pytest.mark.parametrize(
    ("value", "at_least", "at_most"),
    [("7", 7, 8), ("0", 0.5, 1), ("-5", 0.5, 1), ("rubbish", 0.5, 1), ("999999", 300, 330), ("1772366430", 30, 34)],
)
def test_retry_after_is_obeyed_within_bounds(
    server: Server, transport: Transport, clock: ManualClock, value: str, at_least: float, at_most: float
) -> None:
    assert int(NOW.timestamp()) + 30 == 1772366430
    url = server.on("/fhir/x", Reply(429, headers={"Retry-After": value}), Reply())
    transport.fetch(RemoteRequest("The test", url))
    assert at_least <= clock.slept[0] <= at_most


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("120", 120),
        ("1.5", 1.5),
        ("-1", 0),
        ("0", 0),
        ("Sun, 01 Mar 2026 12:01:00 GMT", 60),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("1772366460", 60),
        ("1772366460000", 60),
        ("1000000001", 0),
    ],
)
def test_every_form_of_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_breaks_anything(value: str) -> None:
    seconds = retry_after_seconds(value, NOW)
    assert seconds is None or seconds >= 0


@given(st.integers(1, 40), st.none() | st.floats(0, 1e12), st.integers())
def test_waits_are_bounded(attempt: int, asked: float | None, seed: int) -> None:
    policy = RetryPolicy()
    wait = policy.wait_seconds(attempt, asked, random.Random(seed))
    assert 0.5 <= wait <= policy.longest_wait_seconds * 1.1


# --- 401


def test_a_refused_token_is_renewed_once(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(401), Reply())
    transport.fetch(RemoteRequest("The test", url, tokens=Tokens()))
    assert [headers["authorization"] for _, _, headers in server.requests] == ["Bearer token-1", "Bearer token-2"]


def test_a_token_refused_twice_is_final(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(401))
    with pytest.raises(AuthenticationRefused, match="fresh token was refused"):
        transport.fetch(RemoteRequest("The test", url, tokens=Tokens()))
    assert len(server.requests) == 2


# --- addresses


def test_nothing_is_sent_to_a_host_that_is_not_allowed(
    server: Server, other_server: Server, transport: Transport
) -> None:
    with pytest.raises(UnsafeRemote, match="allowed_origins"):
        transport.fetch(RemoteRequest("The test", other_server.url + "/file", tokens=Tokens()))
    assert other_server.requests == []


def test_a_redirect_to_another_host_is_not_followed(server: Server, other_server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(302, headers={"Location": other_server.url + "/x"}))
    with pytest.raises(UnsafeRemote):
        transport.fetch(RemoteRequest("The test", url, tokens=Tokens()))
    assert other_server.requests == []


def test_a_redirect_within_the_site_is_followed(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(307, headers={"Location": "/fhir/y"}))
    server.on("/fhir/y", Reply(body=b'{"here": true}'))
    assert transport.fetch(RemoteRequest("The test", url)).json() == {"here": True}


def test_redirects_in_a_circle_end(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(302, headers={"Location": "/fhir/x"}))
    with pytest.raises(ProtocolError, match="redirects"):
        transport.fetch(RemoteRequest("The test", url))


def test_a_post_is_never_redirected(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(307, headers={"Location": "/fhir/y"}))
    assert transport.send(RemoteRequest("The test", url, method="POST", form={"a": "b"})).status == 307
    assert len(server.requests) == 1


def test_another_origin_can_be_allowed(server: Server, other_server: Server, clock: ManualClock) -> None:
    url = other_server.on("/file", Reply(body=b"{}"))
    with Transport(site_at(server.url, allowed_origins=(other_server.url,)), clock) as transport:
        assert transport.fetch(RemoteRequest("The test", url)).status == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://fhir.example.org/x",
        "https://fhir.example.org:8443/x",
        "https://user@fhir.example.org/x",
        "https://fhir.example.org@evil.example/x",
        "https://fhir.example.org.evil.example/x",
        "https://evil.example/\\@fhir.example.org",
        "file:///etc/passwd",
        "//fhir.example.org",
        "",
    ],
)
def test_addresses_that_only_look_like_the_site(clock: ManualClock, url: str) -> None:
    site = site_at("https://FHIR.example.org", test_mode=False)
    with Transport(site, clock) as transport:
        transport.check_address("The test", "https://fhir.example.org:443/any")
        with pytest.raises(UnsafeRemote):
            transport.check_address("The test", url)


def test_plain_http_is_for_the_test_mode_only(clock: ManualClock) -> None:
    site = site_at("https://fhir.example.org", test_mode=False, allowed_origins=("http://files.example.org",))
    with Transport(site, clock) as transport, pytest.raises(UnsafeRemote):
        transport.check_address("The test", "http://files.example.org/x")


def test_a_ca_file_that_is_none(clock: ManualClock, tmp_path: Any) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    with pytest.raises(ConfigurationError, match="ca_file"):
        Transport(site_at("http://127.0.0.1", ca_file=tmp_path / "ca.pem"), clock)


# --- connections, bodies, limits


def test_a_closed_port_is_unreachable(clock: ManualClock) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with Transport(site_at(url), clock, policy=RetryPolicy(attempts=2)) as transport:
            with pytest.raises(Unreachable, match="no connection"):
                transport.fetch(RemoteRequest("The test", f"{url}/fhir/x"))
            assert len(clock.slept) == 1


@pytest.mark.parametrize("shape", ["plain", "gzip", "gzip without its end"])
def test_a_body_that_is_cut_never_passes_as_whole(server: Server, transport: Transport, shape: str) -> None:
    whole = b'{"id":"1"}\n' * 500
    packed = gzip.compress(whole)
    encoding = {} if shape == "plain" else {"Content-Encoding": "gzip"}
    body = whole if shape == "plain" else packed
    half = Reply(body=body[: len(body) // 2], headers=encoding, length=len(body))
    if shape == "gzip without its end":  # with a length that fits: only the decoder can tell
        half = Reply(body=packed[:-9], headers=encoding)
    url = server.on("/fhir/file", half, Reply(body=body, headers=encoding))
    attempts: list[list[bytes]] = []

    def consume(chunks: Iterator[bytes]) -> bytes:
        attempts.append([])
        for chunk in chunks:
            attempts[-1].append(chunk)
        return b"".join(attempts[-1])

    assert transport.stream(RemoteRequest("The test", url), consume) == whole
    assert len(attempts) == 2


def test_what_the_consumer_finds_wrong_is_fetched_again(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/file", Reply(body=b"1"), Reply(body=b"2"))

    def consume(chunks: Iterator[bytes]) -> bytes:
        body = b"".join(chunks)
        if body != b"2":
            raise RemoteUnavailable("too short")
        return body

    assert transport.stream(RemoteRequest("The test", url), consume) == b"2"


def test_an_answer_that_is_too_long_is_refused(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(body=gzip.compress(bytes(5000)), headers={"Content-Encoding": "gzip"}))
    with pytest.raises(UnsafeRemote, match="longer than 1000 bytes"):
        transport.fetch(RemoteRequest("The test", url, max_bytes=1000))


def test_an_encoding_that_nobody_asked_for(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(headers={"Content-Encoding": "br"}))
    with pytest.raises(ProtocolError, match="encoding"):
        transport.fetch(RemoteRequest("The test", url))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"\xff"])
def test_what_is_no_json_object(server: Server, transport: Transport, body: bytes) -> None:
    answer = transport.fetch(RemoteRequest("The test", server.on("/fhir/x", Reply(body=body))))
    with pytest.raises(ProtocolError, match="not a JSON object"):
        answer.json()


def test_a_short_call_ends_in_time_and_is_not_repeated(
    server: Server, transport: Transport, clock: ManualClock
) -> None:
    url = server.on("/fhir/x", Reply(before=lambda: clock.advance(25)))
    with pytest.raises(RemoteUnavailable, match="took too long"):
        transport.within(20).fetch(RemoteRequest("The test", url))
    assert len(server.requests) == 1
    assert transport.fetch(RemoteRequest("The test", url)).status == 200


# --- messages


def test_messages_and_logs_hold_no_resource_and_no_secret(
    server: Server, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    leaky = outcome("invalid", "Bad " + "x" * 100, diagnostics="y " * 400, expression=["Patient.name=Miller"])
    url = server.on("/fhir/x", Reply(400, leaky))
    with pytest.raises(RemoteRefused) as caught:
        transport.fetch(RemoteRequest("The test", f"{url}?patient=12345", tokens=Tokens()))
    told = str(caught.value) + caplog.text
    assert "invalid: Bad …" in told
    assert len(caught.value.message) < 500
    for secret in ("Miller", "12345", "token-1", "x" * 61):
        assert secret not in told


def test_a_page_that_is_no_outcome_is_not_shown(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/x", Reply(400, b'{"resourceType":"Patient","name":"Miller"}'))
    with pytest.raises(RemoteRefused) as caught:
        transport.fetch(RemoteRequest("The test", url))
    assert "Miller" not in str(caught.value)


def test_epic_codes_are_shown(server: Server, transport: Transport) -> None:
    body = outcome("required", "A required element is missing.")
    document = orjson.loads(body)
    document["issue"][0]["details"]["coding"] = [{"system": "urn:oid:1.2.840.114350", "code": "59108"}]
    url = server.on("/fhir/x", Reply(400, orjson.dumps(document)))
    with pytest.raises(RemoteRefused, match=r"required: 59108 A required element is missing\."):
        transport.fetch(RemoteRequest("The test", url))


@pytest.mark.parametrize("issue", [[1], [{"details": 1}], [{"details": {"coding": [1]}}], {"a": 1}, None, 5])
def test_broken_outcomes_break_nothing(server: Server, transport: Transport, issue: Any) -> None:
    body = orjson.dumps({"resourceType": "OperationOutcome", "issue": issue})
    with pytest.raises(RemoteRefused, match="400"):
        transport.fetch(RemoteRequest("The test", server.on("/fhir/x", Reply(400, body))))


def test_plain_text_and_shown_url() -> None:
    assert plain_text("a\nb\x1b[31m  c", 100) == "a b [31m c"
    assert plain_text(17) == ""
    assert shown_url("https://u:p@h:8/a/b?patient=1&_type=x#f") == "https://h:8/a/b?patient=…&_type=…"


# --- bulk exchanges


def test_a_kick_off_as_epic_wants_it(server: Server, transport: Transport) -> None:
    server.on("/fhir/Group/a%2Fb/$export", Reply(202, headers={"Content-Location": "/fhir/job/1"}))
    started = protocol.kick_off(session_of(transport), "a/b", ("Patient", "Observation"))
    assert started == KickOff(f"{server.url}/fhir/job/1")
    method, path, headers = server.requests[0]
    assert (method, path) == ("GET", "/fhir/Group/a%2Fb/$export?_type=Patient,Observation")
    assert (headers["accept"], headers["prefer"]) == ("application/fhir+json", "respond-async")


@pytest.mark.parametrize("status", [400, 403, 409, 429, 500])
def test_too_recently_is_understood_with_any_status(server: Server, transport: Transport, status: int) -> None:
    text = "This client has requested  this Group too recently."
    server.on("/fhir/Group/g1/$export", Reply(status, outcome("business-rule", text)))
    with pytest.raises(CooldownActive, match="2026-03-02 12:00 UTC") as caught:
        protocol.kick_off(session_of(transport), "g1", ("Patient",))
    assert caught.value.next_try == NOW + timedelta(hours=24)
    assert len(server.requests) == 1


def test_too_recently_is_understood_at_the_end_of_a_long_text(server: Server, transport: Transport) -> None:
    text = f"{'Error normalizing bulk request. ' * 12} This client has requested this Group too recently."
    server.on("/fhir/Group/g1/$export", Reply(400, outcome("business-rule", text)))
    with pytest.raises(CooldownActive):
        protocol.kick_off(session_of(transport), "g1", ("Patient",))


@pytest.mark.parametrize("status", [408, 500, 502, 504])
def test_a_kick_off_without_a_clear_answer_is_unknown(server: Server, transport: Transport, status: int) -> None:
    server.on("/fhir/Group/g1/$export", Reply(status))
    with pytest.raises(KickOffUnknown, match="may have been started"):
        protocol.kick_off(session_of(transport), "g1", ("Patient",))
    assert len(server.requests) == 1


def test_a_kick_off_whose_connection_fails_is_unknown(server: Server, transport: Transport) -> None:
    def fail() -> None:
        raise ConnectionAbortedError

    server.on("/fhir/Group/g1/$export", Reply(before=fail))
    with pytest.raises(KickOffUnknown):
        protocol.kick_off(session_of(transport), "g1", ("Patient",))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(202), AcceptedWithoutAddress),
        (Reply(200), ProtocolError),
        (Reply(404), RemoteRefused),
        (Reply(401), AuthenticationRefused),
        (Reply(503), RemoteUnavailable),
    ],
)
def test_a_kick_off_that_fails(server: Server, transport: Transport, reply: Reply, error: type[EpicOmopError]) -> None:
    server.on("/fhir/Group/g1/$export", reply)
    with pytest.raises(error) as caught:
        protocol.kick_off(session_of(transport), "g1", ("Patient",))
    assert not isinstance(caught.value, KickOffUnknown)


def test_a_status_that_still_runs(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/job", Reply(202, b"", {"Retry-After": "60", "X-Progress": "3 of 9\x07 patients"}))
    assert protocol.poll(session_of(transport), url) == StillRunning(60, "3 of 9 patients")


def manifest(**changes: Any) -> bytes:
    document = {
        "transactionTime": "2026-03-01T11:00:00Z",
        "requiresAccessToken": True,
        "output": [{"type": "Patient", "url": "https://h/1", "count": 3}],
        "error": [],
        **changes,
    }
    return orjson.dumps({name: value for name, value in document.items() if value != "absent"})


def polled(server: Server, transport: Transport, body: bytes) -> Manifest:
    result = protocol.poll(session_of(transport), server.on("/fhir/job", Reply(body=body)))
    assert isinstance(result, Manifest)
    return result


@pytest.mark.parametrize("extension", [{}, {"a": 1}, [{"url": "x"}], None])
def test_manifests_of_all_versions(server: Server, transport: Transport, extension: Any) -> None:
    issues = [{"type": "OperationOutcome", "url": "https://h/2"}]
    stu3 = polled(server, transport, manifest(error=issues, extension=extension, request="x"))
    stu4 = polled(server, transport, manifest(error="absent", outcome=[{"url": "https://h/2"}], extension=extension))
    assert stu3 == stu4
    assert stu3.output == (ManifestFile("Patient", "https://h/1", 3),)
    assert stu3.outcomes == (ManifestFile("OperationOutcome", "https://h/2"),)
    assert protocol.parse_manifest(orjson.loads(orjson.dumps(stu3.to_json()))) == stu3


def test_pages_are_read_to_the_last(server: Server, transport: Transport) -> None:
    for number, following in ((1, 2), (2, 3), (3, None)):
        link = [{"relation": "next", "url": f"/fhir/job{following}"}] if following else []
        output = [{"type": "Patient", "url": f"https://h/{number}"}]
        server.on(f"/fhir/job{number}", Reply(500), Reply(body=manifest(output=output, link=link)))
    server.replies["/fhir/job1"].pop(0)
    result = protocol.poll(session_of(transport), server.url + "/fhir/job1")
    assert isinstance(result, Manifest)
    assert [file.url for file in result.output] == ["https://h/1", "https://h/2", "https://h/3"]
    assert result.pages == 3


def test_pages_in_a_circle_end(server: Server, transport: Transport) -> None:
    with pytest.raises(ProtocolError, match="circle"):
        polled(server, transport, manifest(link=[{"relation": "next", "url": "/fhir/job"}]))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"output": {"type": "Patient"}}, ProtocolError),
        ({"output": [{"type": "Patient"}]}, ProtocolError),
        *(
            ({"output": [{"type": "Patient", "url": url}]}, ProtocolError)
            for url in (
                "https://h/\0",
                "https://h/a\nb",
                "http://[",
                "https://h:0/",
                " ",
                "https://h:99999/1",
            )
        ),
        ({"link": [{"relation": "next", "url": "https://h/\0"}]}, ProtocolError),
        ({"output": [{"type": "Patient", "url": "ftp://h/1"}]}, ProtocolError),
        ({"output": [{"type": "../../x", "url": "https://h/1"}]}, UnsafeRemote),
        ({"output": [{"url": "https://h/1"}]}, UnsafeRemote),
    ],
)
def test_manifests_that_are_refused(
    server: Server, transport: Transport, changes: dict[str, Any], error: type[EpicOmopError]
) -> None:
    with pytest.raises(error):
        polled(server, transport, manifest(**changes))


@pytest.mark.parametrize(
    "time",
    ["absent", "yesterday", None, 17, "2026-02-30T00:00:00Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+05:00"],
)
def test_a_time_that_cannot_be_read_loses_no_file(server: Server, transport: Transport, time: Any) -> None:
    found = polled(server, transport, manifest(transactionTime=time))
    assert found.transaction_time is None
    assert found.output == (ManifestFile("Patient", "https://h/1", 3),)
    assert protocol.parse_manifest(orjson.loads(orjson.dumps(found.to_json()))) == found


@pytest.mark.parametrize("count", [-1, 2**63, "3", 2.5, True, None])
def test_a_count_that_is_none_is_not_compared(server: Server, transport: Transport, count: Any) -> None:
    output = [{"type": "Patient", "url": "https://h/1", "count": count}]
    assert polled(server, transport, manifest(output=output)).output[0].count is None


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b'{"output": [', outcome("exception", "busy"), b"", b"\xff\xfe{\0}\0", b"null"]
)
def test_what_is_no_manifest_says_nothing_of_the_export(server: Server, transport: Transport, body: bytes) -> None:
    with pytest.raises(UnreadableStatus, match="not a manifest"):
        polled(server, transport, body)


@pytest.mark.parametrize("location", ["", "http://[", "https://h/\x01", "ftp://h/1"])
def test_a_content_location_that_is_no_address(server: Server, transport: Transport, location: str) -> None:
    server.on("/fhir/Group/g1/$export", Reply(202, headers={"Content-Location": location}))
    with pytest.raises((AcceptedWithoutAddress, KickOffUnknown)):
        protocol.kick_off(session_of(transport), "g1", ("Patient",))


def test_a_page_of_a_gateway_is_no_manifest(server: Server, transport: Transport) -> None:
    """A maintenance page says nothing of the export, which may have run for days."""
    with pytest.raises(RemoteUnavailable, match="not a manifest"):
        polled(server, transport, b"<html>We are back at 6 am</html>")


@pytest.mark.parametrize(("told", "running"), [("202 Accepted", True), ("200", False)])
def test_the_status_of_the_export_apart_from_that_of_the_question(
    server: Server, transport: Transport, told: str, running: bool
) -> None:
    url = server.on("/fhir/job", Reply(200, manifest(), {"X-Export-Status": told, "Retry-After": "7"}))
    status = protocol.poll(session_of(transport), url)
    assert (status == StillRunning(7, None)) is running
    assert isinstance(status, Manifest) is not running


def test_an_export_that_failed_by_its_own_status(server: Server, transport: Transport) -> None:
    url = server.on("/fhir/job", Reply(200, outcome("exception", "no"), {"X-Export-Status": "422"}))
    with pytest.raises(RemoteRefused, match="exception: no"):
        protocol.poll(session_of(transport), url)


@pytest.mark.parametrize("status", [404, 410])
def test_a_job_that_is_gone(server: Server, transport: Transport, status: int) -> None:
    with pytest.raises(ExportGone):
        protocol.poll(session_of(transport), server.on("/fhir/job", Reply(status)))


class Body:
    """The simplest receiver: the whole body."""

    def headers(self) -> dict[str, str]:
        return {}

    def __call__(self, answer: StreamedResponse) -> bytes:
        return b"".join(answer.chunks)


@pytest.mark.parametrize("needs_token", [True, False])
def test_a_file_is_fetched_with_a_token_only_where_it_needs_one(
    server: Server, transport: Transport, needs_token: bool
) -> None:
    server.on("/fhir/file", Reply(body=b"{}\n"))
    body = protocol.download(
        session_of(transport),
        ManifestFile("Patient", "/fhir/file"),
        Body(),
        status_url=f"{server.url}/fhir/job",
        requires_access_token=needs_token,
    )
    headers = server.requests[0][2]
    assert body == b"{}\n"
    assert headers["accept"] == "application/fhir+ndjson"
    assert ("authorization" in headers) is needs_token


@pytest.mark.parametrize("status", [200, 202, 204, 404])
def test_deleting_a_job(server: Server, transport: Transport, status: int) -> None:
    protocol.delete_job(session_of(transport), server.on("/fhir/job", Reply(status, b"")))
    assert server.requests[0][0] == "DELETE"


def test_a_delete_that_is_refused_is_told(server: Server, transport: Transport) -> None:
    with pytest.raises(RemoteRefused, match="Deleting"):
        protocol.delete_job(session_of(transport), server.on("/fhir/job", Reply(403)))
