"""Attacks on the security rules, one or more for each line: a hostile server, a curious colleague, a careless setting.

The servers are real, on loopback. In each case the attack gets nothing, and the run ends with an error that says so.
"""

from __future__ import annotations

import datetime as dt
import gzip
import ipaddress
import os
import socket
import ssl
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from pipeline.core.clock import SystemClock
from pipeline.core.errors import ConfigurationError, EpicOmopError, UnsafeRemote
from pipeline.core.settings import Settings, SiteSettings, load_settings, register_site
from pipeline.extract import bulk
from pipeline.extract.bulk.protocol import MAX_FILES, MAX_MANIFEST_BYTES, MAX_MANIFEST_VALUES
from pipeline.extract.http import messages
from pipeline.extract.http.network import AddressRule, CheckedNetwork
from pipeline.extract.http.transport import RemoteRequest, RetryPolicy, Transport
from pipeline.landing.origin import read_origin
from pipeline.landing.reading import open_landed
from pipeline.warehouse import export_jobs
from pipeline.warehouse.runtime import Runtime
from tests.hostile_epic import GivenLines, HostileEpic, ShiftedClock, is_file, running, site_entry

ONCE = RetryPolicy(attempts=1)


@pytest.fixture
def epic() -> Iterator[HostileEpic]:
    with running(HostileEpic(ShiftedClock())) as epic:
        yield epic


@pytest.fixture
def runtime(tmp_path: Path, epic: HostileEpic, installed_url: str) -> Runtime:
    site = SiteSettings(name="site_a", **site_entry(epic, tmp_path))
    runtime = Runtime(Settings(home=tmp_path / "home", database_url=installed_url, sites={"site_a": site}), epic.clock)
    with runtime.connect() as connection:
        connection.execute("TRUNCATE export_job, export_file, cool_down, request_count")
    return runtime


def exported(runtime: Runtime) -> None:
    bulk.export_site(runtime, runtime.settings.site("site_a"))


def states(runtime: Runtime) -> list[str]:
    with runtime.connect() as connection:
        return [job.state for job in export_jobs.list_jobs(connection)]


def blocked(runtime: Runtime) -> int:
    """Entries of this site's access log that tell of a forbidden address."""
    with runtime.connect() as connection:
        row = connection.execute("SELECT count(*) FROM access_log WHERE outcome = 'blocked'").fetchone()
    assert row is not None
    return int(row[0])


def landed_files(runtime: Runtime) -> list[Path]:
    return [path for path in runtime.settings.landing.rglob("*") if path.is_file()]


class Elsewhere:
    """A server of somebody else: it must never hear of us."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        elsewhere = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                elsewhere.requests.append(f"{self.command} {self.path} {self.headers}")
                self.send_response(200)
                self.end_headers()

            do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    server = Elsewhere()
    with served(server.http):
        yield server


@contextmanager
def served(http: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


# --- a token, and anything else, goes to allow-listed hosts only


def names_token_endpoint(epic: HostileEpic, url: str) -> None:
    def answer(_: int, request: Request) -> Response | None:
        if request.url.path.endswith("smart-configuration"):
            return Response(orjson.dumps({"token_endpoint": f"{url}/token"}))
        return None

    epic.answer = answer


def names_status_address(epic: HostileEpic, url: str) -> None:
    def answer(_: int, request: Request) -> Response | None:
        if request.url.path.endswith("$export"):
            return Response(status_code=202, headers={"Content-Location": f"{url}/status"})
        return None

    epic.answer = answer


def names_next_page(epic: HostileEpic, url: str) -> None:
    epic.edit_manifest = lambda manifest: manifest.update(link=[{"relation": "next", "url": f"{url}/page"}])


def names_file(epic: HostileEpic, url: str) -> None:
    epic.edit_manifest = lambda manifest: manifest["output"][0].update(url=f"{url}/file")


def names_file_that_needs_no_token(epic: HostileEpic, url: str) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest.update(requiresAccessToken=False)
        manifest["output"][0].update(url=f"{url}/file")

    epic.edit_manifest = edit
    file_answers(epic, lambda: Response(b'{"resourceType":"Patient","id":"a"}\n' * 3))  # the others need none either


def redirects(part: str, status: int) -> Callable[[HostileEpic, str], None]:
    def attack(epic: HostileEpic, url: str) -> None:
        def answer(_: int, request: Request) -> Response | None:
            path = request.url.path
            steps = path.rpartition("/BulkRequest/")[2].count("/") if "/BulkRequest/" in path else -1
            hit = {"kick-off": path.endswith("$export"), "status": steps == 0, "file": steps == 1}
            hit["discovery"] = path.endswith("smart-configuration")
            return Response(status_code=status, headers={"Location": f"{url}/x"}) if hit[part] else None

        epic.answer = answer

    attack.__name__ = f"redirects_{part}_{status}"
    return attack


ADDRESSES = [
    names_token_endpoint,
    names_status_address,
    names_next_page,
    *(redirects(part, status) for part, status in (("discovery", 302), ("kick-off", 307), ("status", 301))),
    *(redirects("file", status) for status in (302, 303, 308)),
]


@pytest.mark.parametrize("attack", ADDRESSES, ids=lambda attack: attack.__name__)
def test_another_host_hears_nothing(
    runtime: Runtime, epic: HostileEpic, elsewhere: Elsewhere, attack: Callable[[HostileEpic, str], None]
) -> None:
    attack(epic, elsewhere.url)
    before = blocked(runtime)
    with pytest.raises(UnsafeRemote, match="not allow-listed"):
        exported(runtime)
    assert elsewhere.requests == []
    assert blocked(runtime) > before
    assert not any(line.startswith("DELETE") for line in epic.paths)


@pytest.mark.parametrize("attack", [names_file, names_file_that_needs_no_token], ids=lambda attack: attack.__name__)
def test_another_host_hears_nothing_of_one_file(
    runtime: Runtime, epic: HostileEpic, elsewhere: Elsewhere, attack: Callable[[HostileEpic, str], None]
) -> None:
    attack(epic, elsewhere.url)
    before = blocked(runtime)
    exported(runtime)
    (landed,) = runtime.landing.finished("site_a")
    assert [gap.reason for gap in read_origin(landed.folder).gaps] == ["unusable"]
    assert elsewhere.requests == []
    assert blocked(runtime) > before
    assert not any(line.startswith("DELETE") for line in epic.paths)


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "http://user@{}"])
def test_an_address_of_another_kind_is_not_followed(runtime: Runtime, epic: HostileEpic, target: str) -> None:
    names_file(epic, target.format(epic.url.removeprefix("http://")))
    exported(runtime)
    (landed,) = runtime.landing.finished("site_a")
    assert [(gap.number, gap.reason) for gap in read_origin(landed.folder).gaps] == [(1, "unusable")]


def test_the_token_stays_away_from_a_file_that_needs_none(runtime: Runtime, epic: HostileEpic) -> None:
    file_answers(epic, lambda: Response(b'{"resourceType":"Patient","id":"a"}\n' * 3))
    epic.edit_manifest = lambda manifest: manifest.update(requiresAccessToken=False)
    exported(runtime)
    files = [token for _, path, token in epic.requests if is_file(path)]
    assert files == ["", ""]
    assert any(token.startswith("Bearer ") for _, _, token in epic.requests)


# --- SSRF: what is behind a name


@contextmanager
def silent_listener(host: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[int, Callable[[], int]]]:
    """A port, and how many connections it has had."""
    with socket.create_server((host, port)) as listener:
        listener.setblocking(False)
        accepted: list[socket.socket] = []

        def connections() -> int:
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except BlockingIOError:
                    return len(accepted)

        yield listener.getsockname()[1], connections
        for one in accepted:
            one.close()


def real_site(url: str, **changes: Any) -> SiteSettings:
    """A site outside of test mode."""
    values = {"fhir_url": url, "client_id": "c", "private_key_env": "KEY", "groups": ("g",), **changes}
    return SiteSettings(name="real", **values)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"])
def test_a_name_that_means_this_machine_is_refused(host: str) -> None:
    with silent_listener() as (port, connections):
        url = f"https://{host}:{port}"
        with Transport(real_site(url), SystemClock(), policy=ONCE) as transport, pytest.raises(EpicOmopError) as caught:
            transport.fetch(RemoteRequest("The attack", f"{url}/x"))
        assert connections() == 0
    assert isinstance(caught.value, UnsafeRemote), caught.value


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("127.8.8.8", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b:1::10.0.0.1", False),
        ("64:ff9b:1::8.8.8.8", True),
        ("64:ff9b:1:a00:0:100::", False),  # 10.0.0.1 after a prefix of 48 bits
        ("64:ff9b:1:808:8:800::", True),  # 8.8.8.8 there
        ("64:ff9b:1:7f:0:1::", False),
        ("::ffff:8.8.8.8", True),
        ("::ffff:169.254.169.254", False),
        ("::ffff:0:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("::10.1.2.3", False),
        ("2002:a00:1::1", False),
        ("2002:808:808::1", True),
        ("2001:0:808:808::f5ff:fffe", False),  # Teredo for 10.0.0.1
        ("2001:0:a00:1::f7f7:f7f7", False),  # relayed by 10.0.0.1
        ("2606:4700::5efe:10.0.0.1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
    ],
)
def test_private_and_special_addresses(address: str, public: bool) -> None:
    assert AddressRule().allows(address) is public


@pytest.mark.parametrize(
    "address", ["10.20.3.4", "::ffff:10.20.3.4", "64:ff9b::10.20.3.4", "64:ff9b:1::10.20.3.4", "2002:a14:304::1"]
)
def test_a_named_private_network_holds_in_every_form(address: str) -> None:
    assert AddressRule((ipaddress.ip_network("10.20.0.0/16"),)).allows(address)
    assert not AddressRule((ipaddress.ip_network("10.21.0.0/16"),)).allows(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://user@epic.example/R4",
        "https://user:Quillfeather@epic.example/R4",
        "https://:Quillfeather@epic.example/R4",
        "https://@epic.example/R4",
        "https://epic.example@10.0.0.1/R4",
        "https://epic.example/R4?key=Quillfeather",
        "https://epic.example/R4?",
        "https://epic.example/R4#Quillfeather",
        "https://epic.example/R4#",
        "https://epic.example\\@10.0.0.1/R4",
        "https://epic.example/R4\n",
        "https://epic.example/ R4",
        "https:///R4",
        "https://epic.example:0/R4",
        "https://epic.example:x/R4",
        "https://[::1/R4",
    ],
)
def test_an_odd_base_address_is_refused_and_nothing_of_it_is_shown(url: str, tmp_path: Path) -> None:
    entry = {"fhir_url": url, "client_id": "x", "private_key_env": "KEY", "groups": ["g"]}
    with pytest.raises(ConfigurationError, match="fhir_url") as caught:
        register_site(tmp_path, "north", entry)
    assert "Quillfeather" not in f"{caught.value} {caught.value.advice}"


def test_a_name_that_answers_differently_is_connected_to_where_it_was_checked() -> None:
    """DNS rebinding: the second answer names a server that the rule forbids. Both are real listeners."""
    rule = AddressRule((ipaddress.ip_network("127.0.0.2/32"),))
    answers = iter([["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    with silent_listener("127.0.0.2") as (port, allowed), silent_listener("127.0.0.1", port) as (_, forbidden):
        network = CheckedNetwork(rule, resolve)
        network.connect_tcp("rebinding.example", port, timeout=5).close()
        assert (allowed(), forbidden(), asked) == (1, 0, ["rebinding.example"])
        with pytest.raises(UnsafeRemote, match=r"rebinding\.example"):
            network.connect_tcp("rebinding.example", port, timeout=5)
        network.connect_tcp("rebinding.example", port, timeout=5).close()  # of several, the one that is allowed
        assert (allowed(), forbidden()) == (2, 0)


def test_a_private_network_can_be_named_and_this_machine_cannot() -> None:
    site = real_site("https://epic.example", private_networks=("10.20.0.0/16",))
    assert site.private_networks == ("10.20.0.0/16",)
    for network in (
        "127.0.0.0/8",
        "169.254.0.0/16",
        "0.0.0.0/0",
        "0.0.0.0/1",
        "::/0",
        "8.8.8.0/24",
        "fe80::/10",
        "rubbish",
    ):
        with pytest.raises(ValueError, match="network"):
            real_site("https://epic.example", private_networks=(network,))


# --- paths


@pytest.mark.parametrize("kind", ["../../x", "..", "Patient/../../x", "/etc/x", "Patient\x00", "P" * 65, "Ⅻ", ""])
def test_a_type_never_becomes_a_path(runtime: Runtime, epic: HostileEpic, tmp_path: Path, kind: str) -> None:
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    epic.edit_manifest = lambda manifest: manifest["output"][0].update(type=kind)
    with pytest.raises(UnsafeRemote, match="not a resource type"):
        exported(runtime)
    assert landed_files(runtime) == []
    assert {path for path in tmp_path.rglob("*") if "home" not in path.parts} == before


def test_a_file_name_comes_from_our_own_counter(runtime: Runtime, epic: HostileEpic) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        for file in manifest["output"]:
            file.update(url=f"{epic.fhir_url}/%2e%2e%2f%2e%2e%2fetc%2fpasswd?x=../../y")

    epic.edit_manifest = edit
    epic.answer = lambda _, request: (
        Response(b'{"resourceType":"Patient","id":"a"}\n' * 3) if "passwd" in request.url.path else None
    )
    exported(runtime)
    names = sorted(path.name for path in landed_files(runtime) if path.suffix == ".zst")
    assert names == ["Patient.00001.ndjson.zst", "Patient.00002.ndjson.zst"]


# --- sizes


def file_answers(epic: HostileEpic, body: Callable[[], Response]) -> None:
    def answer(_: int, request: Request) -> Response | None:
        return body() if is_file(request.url.path) else None

    epic.answer = answer


def test_a_decompression_bomb_is_put_out(runtime: Runtime, epic: HostileEpic) -> None:
    bomb = gzip.compress(bytes(200 << 20))
    assert len(bomb) < 1 << 20
    file_answers(epic, lambda: Response(bomb, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(UnsafeRemote, match="longer by decompression"):
        exported(runtime)
    assert [path for path in landed_files(runtime) if path.stat().st_size > 1 << 20] == []
    assert states(runtime) == ["complete"]
    assert not any(line.startswith("DELETE") for line in epic.paths)


def test_a_bomb_in_place_of_a_manifest_or_a_token(runtime: Runtime, epic: HostileEpic) -> None:
    bomb = gzip.compress(b'{"a":"' + bytes(MAX_MANIFEST_BYTES + 1))

    def at(part: str) -> None:
        epic.answer = lambda _, request: (
            Response(bomb, headers={"Content-Encoding": "gzip"}) if part in request.url.path else None
        )

    for part in ("smart-configuration", "/token", "/BulkRequest/"):
        at(part)
        with pytest.raises(UnsafeRemote, match=r"longer (than \d+ bytes|by decompression)"):
            exported(runtime)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_line_without_an_end_is_cut_off(
    runtime: Runtime, epic: HostileEpic, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(messages, "MAX_LINE_BYTES", 8 << 20)

    async def long() -> AsyncIterator[bytes]:
        piece = os.urandom(1 << 19).replace(b"\n", b" ")
        sent = gzip.compress(piece, 1) if packed else piece
        for _ in range(200):  # an end for the server's sake alone: it goes on when nobody listens any more
            yield sent

    headers = {"Content-Encoding": "gzip"} if packed else {}
    file_answers(epic, lambda: StreamingResponse(long(), headers=headers))
    with pytest.raises(UnsafeRemote, match="a line is longer than 8 MiB"):
        exported(runtime)
    with runtime.connect() as connection:
        row = connection.execute(
            "SELECT outcome, bytes FROM access_log WHERE event = 'file' ORDER BY id DESC"
        ).fetchone()
    assert row is not None
    assert row[0] == "blocked"
    assert 8 << 20 < row[1] < 10 << 20
    assert [path for path in landed_files(runtime) if path.stat().st_size > 1 << 20] == []
    assert states(runtime) == ["complete"]


def test_a_manifest_that_is_too_large(runtime: Runtime, epic: HostileEpic) -> None:
    epic.edit_manifest = lambda manifest: manifest.update(extension="x" * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(UnsafeRemote, match="longer than"):
        exported(runtime)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"0", b'{"":0}', b"[[" * 50 + b"]]" * 50])
def test_a_manifest_of_many_small_values_is_not_made_into_objects(
    runtime: Runtime, epic: HostileEpic, content: bytes
) -> None:
    """Tens of MiB of `{},` would become gigabytes."""
    body = b'{"transactionTime": "2026-01-01T00:00:00Z", "output": [], "extension": [' + b",".join(
        [content] * (MAX_MANIFEST_VALUES // (1 + content.count(b"{") + content.count(b"[")) + 1)
    )
    epic.answer = lambda _, request: Response(body + b"]}") if "/BulkRequest/" in request.url.path else None
    with pytest.raises(UnsafeRemote, match="holds more than"):
        exported(runtime)


def test_pages_of_a_manifest_are_limited_together(runtime: Runtime, epic: HostileEpic) -> None:
    filler = "x" * (MAX_MANIFEST_BYTES // 3)
    epic.edit_manifest = lambda manifest: manifest.update(
        extension=filler, link=[{"relation": "next", "url": f"{epic.url}/page-2"}]
    )

    def further_page(_: int, request: Request) -> Response | None:
        if not request.url.path.startswith("/page-"):
            return None
        page = {"transactionTime": job_time(epic), "output": [], "extension": filler}
        number = int(request.url.path.rpartition("-")[2]) + 1
        return Response(orjson.dumps({**page, "link": [{"relation": "next", "url": f"{epic.url}/page-{number}"}]}))

    epic.answer = further_page
    with pytest.raises(UnsafeRemote, match="together"):
        exported(runtime)


class _TickingClock(ShiftedClock):
    """While it ticks, 61 seconds pass between any two looks at it."""

    ticks = False

    def now(self) -> dt.datetime:
        if self.ticks:
            self.sleep(61)
        return super().now()


@pytest.mark.parametrize(("floor", "resumed"), [(100_000, True), (1, False), (0, False)])
def test_a_download_that_trickles_is_begun_anew_where_it_was(
    tmp_path: Path, installed_url: str, floor: int, resumed: bool
) -> None:
    """Each piece of the body takes 61 seconds of the pipeline's own clock: some hundred bytes a second."""
    clock = _TickingClock()
    lines = tuple(f'{{"resourceType":"Patient","id":"p{number:06}"}}'.encode() for number in range(20_000))
    body = b"".join(line + b"\n" for line in lines)
    ranges: list[str | None] = []
    whole = {"resources_per_file": len(lines)}

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 8192):
            yield body[start : start + 8192]

    def first_is_slow(_: int, request: Request) -> Response | None:
        if not is_file(request.url.path):
            return None
        ranges.append(request.headers.get("range"))
        clock.ticks = len(ranges) == 1
        return StreamingResponse(pieces()) if clock.ticks else None

    with running(HostileEpic(clock, groups={"g": GivenLines({"Patient": lines})}, options=whole)) as epic:
        entry = site_entry(epic, tmp_path, download_floor_bytes_per_second=floor)
        site = SiteSettings(name="site_a", **entry)
        settings = Settings(home=tmp_path / "home", database_url=installed_url, sites={"site_a": site})
        runtime = Runtime(settings, clock)
        with runtime.connect() as connection:
            connection.execute("TRUNCATE export_job, export_file, cool_down, request_count")
        epic.answer = first_is_slow
        exported(runtime)
        clock.ticks = False
    assert len(ranges) == (2 if resumed else 1)
    if resumed:
        assert ranges[1], "the rest is asked for by Range"
    (landed,) = [path for path in landed_files(runtime) if path.name.endswith(".ndjson.zst")]
    assert open_landed(landed.with_suffix("")).read() == body


def test_a_manifest_with_too_many_files(runtime: Runtime, epic: HostileEpic) -> None:
    """Also when no single page has too many."""
    half = [{"type": "Patient", "url": "/x"}] * (MAX_FILES // 2 + 1)
    epic.edit_manifest = lambda manifest: manifest.update(
        output=half, link=[{"relation": "next", "url": f"{epic.url}/page-2"}]
    )

    def second_page(_: int, request: Request) -> Response | None:
        if request.url.path != "/page-2":
            return None
        return Response(orjson.dumps({"transactionTime": job_time(epic), "output": half}))

    epic.answer = second_page
    with pytest.raises(UnsafeRemote, match="more than 200000 files"):
        exported(runtime)


def job_time(epic: HostileEpic) -> str:
    (job,) = epic.state.desk._state.jobs.values()
    return str(job.accepted.strftime("%Y-%m-%dT%H:%M:%SZ"))


# --- keys, transport security, settings


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o606])
def test_a_key_that_others_can_read_is_not_used(runtime: Runtime, epic: HostileEpic, mode: int) -> None:
    file = runtime.settings.site("site_a").private_key_file
    assert file is not None
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match="can be used by others"):
        exported(runtime)
    assert epic.requests == []


def test_plain_http_is_refused_outside_of_test_mode(epic: HostileEpic, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="https"):
        register_site(tmp_path, "site_a", {**site_entry(epic, tmp_path), "test_mode": False})
    host = "fhir.example.org"
    site = real_site(f"https://{host}", allowed_origins=(f"http://{host}", f"http://{host}:443"))
    with Transport(site, SystemClock()) as transport:
        transport.check_address("The test", f"https://{host}/x")
        for url in (f"http://{host}/x", f"http://{host}:443/x", f"ftp://{host}/x"):
            with pytest.raises(UnsafeRemote):
                transport.check_address("The attack", url)


@contextmanager
def https_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """A server whose certificate is its own authority: its URL, and the certificate's file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    server = Elsewhere()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem", folder / "tls.key")
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # refused handshakes are expected
    with served(server.http):
        yield f"https://localhost:{server.http.server_port}", folder / "tls.pem"


def test_an_unknown_certificate_is_refused_and_nothing_turns_that_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONHTTPSVERIFY", "SSL_VERIFY", "VERIFY_SSL", "REQUESTS_VERIFY", "NODE_TLS_REJECT_UNAUTHORIZED"):
        monkeypatch.setenv(name, "0")
    with https_server(tmp_path) as (url, authority):
        site = real_site(url, test_mode=True)
        with Transport(site, SystemClock(), policy=ONCE) as transport:
            with pytest.raises(UnsafeRemote, match="certificate is not trusted"):
                transport.fetch(RemoteRequest("The attack", f"{url}/x"))
            assert transport._client._transport._pool._ssl_context.verify_mode == ssl.CERT_REQUIRED  # type: ignore[attr-defined]
        with Transport(site.model_copy(update={"ca_file": authority}), SystemClock(), policy=ONCE) as transport:
            assert transport.fetch(RemoteRequest("The test", f"{url}/x")).status == 200
            other_name = url.replace("localhost", "127.0.0.1")
            by_address = real_site(other_name, test_mode=True, ca_file=authority)
        with Transport(by_address, SystemClock(), policy=ONCE) as transport, pytest.raises(UnsafeRemote):
            transport.fetch(RemoteRequest("The attack", f"{other_name}/x"))


@pytest.mark.parametrize("setting", ["verify", "verify_tls", "verify_ssl", "insecure", "tls_verify", "skip_tls"])
def test_there_is_no_setting_that_turns_tls_checks_off(setting: str) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        real_site("https://epic.example", **{setting: False})
    assert not [name for name in SiteSettings.model_fields if "verify" in name or "insecure" in name]


def test_what_is_landed_is_for_its_owner_only(runtime: Runtime) -> None:
    old = os.umask(0)
    try:
        exported(runtime)
    finally:
        os.umask(old)
    paths = [runtime.settings.landing, *runtime.settings.landing.rglob("*")]
    assert len(paths) > 6
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_home_that_is_made_is_closed_to_others(epic: HostileEpic, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        register_site(tmp_path / "new-home", "site_a", site_entry(epic, tmp_path))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new-home").stat().st_mode) == 0o700
    assert load_settings({"EPIC_OMOP_HOME": str(tmp_path / "new-home")}).sites["site_a"].test_mode
