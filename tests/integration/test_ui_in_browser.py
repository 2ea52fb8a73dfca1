"""Dagster's real webserver behind the guard: attacks by another origin's page in a real Chromium, and its own UI in it.

Without a Chromium (`chromium` or `google-chrome` on the PATH) the browser's part is skipped; the same requests go by hand.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pipeline.core.settings import Settings, load_settings, register_site
from pipeline.operations.health import webserver_finding
from pipeline.orchestration.instance import dagster_environment, prepare_instance
from pipeline.orchestration.switches import open_instance, read_switches, turn

#: A change that anyone can see, and that touches no export.
_SWITCH = "mutation { setAutoMaterializePaused(paused: %s) }"
_LOOK = "{ instance { autoMaterializePaused } }"
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_READY_SECONDS = 120


@dataclass(frozen=True)
class Ui:
    url: str
    settings: Settings


@pytest.fixture(scope="module")
def ui(served: Ui) -> str:
    return served.url


@pytest.fixture(scope="module")
def served(make_home: Callable[[], AbstractContextManager[Path]]) -> Iterator[Ui]:
    """The address of a webserver as `epic-omop ui` and docker-compose.yml start it."""
    with make_home() as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        register_site(
            home,
            "north",
            {
                "fhir_url": "https://epic.example.org/FHIR/R4",
                "client_id": "x",
                "private_key_env": "NO_KEY",
                "groups": ["g"],
            },
        )
        settings = load_settings({"EPIC_OMOP_HOME": str(home)})
        folder = prepare_instance(settings)
        command = [sys.executable, "-m", "pipeline.orchestration.webserver", "-m", "pipeline.definitions"]
        log = (home / "webserver.log").open("wb")
        server = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)],
            cwd=folder, env=dagster_environment(settings, folder), stdout=log, stderr=log,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(lambda: httpx.get(f"{url}/server_info", timeout=5, trust_env=False).is_success, server)
            assert webserver_finding(url).state == "ok", "what `epic-omop health` asks"
            yield Ui(url, settings)
        finally:
            server.terminate()
            server.wait(30)
            log.close()


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, "it ended by itself"
        try:
            if ready():
                return
        except (httpx.HTTPError, OSError):
            pass
        time.sleep(0.2)
    raise AssertionError("it is not ready")


def _graphql(ui: str, query: str) -> Any:
    return httpx.post(f"{ui}/graphql", json={"query": query}, timeout=30, trust_env=False).json()["data"]


def _is_paused(ui: str) -> bool:
    return bool(_graphql(ui, _LOOK)["instance"]["autoMaterializePaused"])


def test_a_program_changes_by_post_and_no_page_by_anything_else(ui: str) -> None:
    _graphql(ui, _SWITCH % "true")
    assert _is_paused(ui)
    query = {"query": _SWITCH % "false"}
    foreign = {"Origin": "http://evil.example"}
    client = httpx.Client(base_url=ui, trust_env=False, timeout=30)
    answers = [
        client.get("/graphql", params=query),
        client.post("/graphql", params=query),
        client.post("/graphql", params=query, data={"a": "b"}),
        client.post("/graphql", content=json.dumps(query), headers={"Content-Type": "text/plain; application/json"}),
        client.post("/graphql", json=query, headers=foreign),
        client.post("/graphql", json=query, headers={"Sec-Fetch-Site": "cross-site"}),
        client.post("/graphql", json=query, headers={"Host": "evil.example"}),
    ]
    assert [answer.status_code for answer in answers] == [405, 415, 415, 415, 403, 403, 421]
    with pytest.raises(InvalidStatus):
        connect(f"{ui.replace('http', 'ws')}/graphql", origin="http://evil.example", subprotocols=["graphql-ws"])  # type: ignore[arg-type, list-item]
    assert _is_paused(ui)
    _graphql(ui, _SWITCH % "false")
    assert not _is_paused(ui)


_WHERE = '(repositorySelector: {repositoryLocationName: "pipeline.definitions", repositoryName: "__repository__"})'
_STATES = (
    f"{{ schedulesOrError{_WHERE} {{ ... on Schedules {{ results {{ name scheduleState {{ status }} }} }} }}"
    f" sensorsOrError{_WHERE} {{ ... on Sensors {{ results {{ name sensorState {{ status }} }} }} }} }}"
)


def _states(ui: str) -> dict[str, str]:
    """Of the site's schedule and sensor; what asks no site anything (the deep check) runs from the first start on."""
    found = _graphql(ui, _STATES)
    schedules = {one["name"]: one["scheduleState"]["status"] for one in found["schedulesOrError"]["results"]}
    every = schedules | {one["name"]: one["sensorState"]["status"] for one in found["sensorsOrError"]["results"]}
    return {name: state for name, state in every.items() if name.startswith("north__")}


def test_a_real_site_is_off_until_someone_switches_it_on_as_dagster_itself_sees(served: Ui) -> None:
    off = {"north__nightly": "STOPPED", "north__exports": "STOPPED"}
    assert _states(served.url) == off
    site = served.settings.site("north")
    with open_instance(served.settings) as instance:
        for on in (True, True, False, True):
            turn(instance, site, on=on)
            assert _states(served.url) == (dict.fromkeys(off, "RUNNING") if on else off)
            switches = read_switches(instance, site)
            assert (switches.schedule, switches.sensor, switches.daemon) == (on, on, False)
        stop = 'mutation { stopRunningSchedule(id: "%s") { __typename } }'
        ids = _graphql(
            served.url, _STATES.replace("name scheduleState { status }", "name id: scheduleState { id status }")
        )
        (schedule,) = (one for one in ids["schedulesOrError"]["results"] if one["name"] == "north__nightly")
        _graphql(served.url, stop % schedule["id"]["id"])
        assert not read_switches(instance, site).schedule, "the UI turns the same switch"


_PAGE = """<!doctype html><title>attack</title><body><script>
const ui = %(ui)s, change = %(change)s, query = ui + '/graphql?query=' + encodeURIComponent(change);
const results = {}, body = JSON.stringify({query: change});
const tried = async (name, what) => { try { results[name] = String(await what()); } catch (error) { results[name] = 'error'; } };
const loaded = (kind, to) => new Promise(end => {
  const node = document.createElement(kind); node.src = to;
  node.onload = () => end('loaded'); node.onerror = () => end('error'); document.body.append(node); });
const form = (to, type, name) => new Promise(end => {
  const frame = document.createElement('iframe'); frame.name = name; document.body.append(frame);
  const form = document.createElement('form'); form.method = 'post'; form.action = to; form.enctype = type; form.target = name;
  const field = document.createElement('input'); field.name = 'query'; field.value = change; form.append(field);
  document.body.append(form); frame.onload = () => end('answered'); form.submit(); setTimeout(() => end('late'), 3000); });
(async () => {
  await tried('image', () => loaded('img', query));
  await tried('script', () => loaded('script', query));
  await tried('frame', () => loaded('iframe', query));
  await tried('get', () => fetch(query, {mode: 'no-cors'}).then(answer => answer.type));
  await tried('text', () => fetch(ui + '/graphql', {method: 'POST', mode: 'no-cors', body,
    headers: {'Content-Type': 'text/plain; application/json'}}).then(answer => answer.type));
  await tried('query', () => fetch(query, {method: 'POST', mode: 'no-cors'}).then(answer => answer.type));
  await tried('json', () => fetch(ui + '/graphql', {method: 'POST', body, headers: {'Content-Type': 'application/json'}})
    .then(answer => answer.status));
  await tried('read', () => fetch(ui + '/server_info').then(answer => answer.text()));
  await tried('form', () => form(query, 'application/x-www-form-urlencoded', 'a'));
  await tried('plain form', () => form(query, 'text/plain', 'b'));
  await tried('socket', () => new Promise(end => {
    const socket = new WebSocket(ui.replace('http', 'ws') + '/graphql', 'graphql-ws');
    socket.onopen = () => end('open'); socket.onerror = () => end('error'); }));
  document.title = 'done'; window.results = results;
})();
</script>"""


@contextmanager
def _attacker(ui: str) -> Iterator[int]:
    """Another port of this machine: another origin, but the same site."""
    page = (_PAGE % {"ui": json.dumps(ui), "change": json.dumps(_SWITCH % "false")}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


class _Browser:
    """A tab of a headless Chromium, by its DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0

    def send(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(60))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end:
            if found := self.value(expression):
                return found
            time.sleep(0.2)
        raise AssertionError(f"{expression} never came; the page says: {self.value('document.body.innerText')}")


@pytest.fixture(scope="module")
def browser(make_home: Callable[[], AbstractContextManager[Path]]) -> Iterator[_Browser]:
    if _CHROMIUM is None:
        pytest.skip("no chromium on the PATH: the same requests went by hand in the test before")
    with make_home() as folder:
        options = (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
        )
        process = subprocess.Popen(
            [_CHROMIUM, *options, f"--user-data-dir={folder}", "--window-size=1400,900", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
        try:
            active = folder / "DevToolsActivePort"
            _wait_for(active.exists, process)
            pages = httpx.get(
                f"http://127.0.0.1:{active.read_text().split()[0]}/json", trust_env=False, timeout=30
            ).json()
            address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            with connect(address, max_size=None) as connection:
                yield _Browser(connection)
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["same site", "another site"])
def test_a_page_of_another_origin_changes_and_reads_nothing(ui: str, browser: _Browser, host: str) -> None:
    _graphql(ui, _SWITCH % "true")
    with _attacker(ui) as port:
        browser.send("Page.navigate", url=f"http://{host}:{port}/")
        results = browser.wait_for("document.title === 'done' && window.results")
    assert _is_paused(ui), results
    assert {results[name] for name in ("json", "read", "socket", "image", "script")} == {"error"}
    assert set(results) == {
        "image",
        "script",
        "frame",
        "get",
        "text",
        "query",
        "json",
        "read",
        "form",
        "plain form",
        "socket",
    }


def test_the_ui_itself_works_through_the_guard(ui: str, browser: _Browser) -> None:
    browser.send("Page.navigate", url=f"{ui}/runs")
    browser.wait_for("document.body && document.body.innerText.includes('Runs')")
    assert browser.value(
        "fetch('/graphql', {method: 'POST', headers: {'Content-Type': 'application/json'},"
        " body: JSON.stringify({query: 'mutation { setAutoMaterializePaused(paused: false) }'})}).then(a => a.status)"
    ) == 200  # fmt: skip
    assert not _is_paused(ui)
    assert browser.value(
        "new Promise(end => { const socket = new WebSocket(location.origin.replace('http', 'ws') + '/graphql', 'graphql-ws');"
        " socket.onopen = () => end('open'); socket.onerror = () => end('error'); })"
    ) == "open"  # fmt: skip
    if target := os.environ.get("EPIC_OMOP_TEST_SCREENSHOT"):
        Path(target).write_bytes(base64.b64decode(browser.send("Page.captureScreenshot")["data"]))
