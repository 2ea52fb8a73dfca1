"""`status`, `health` and `metrics` in one warehouse whose nights go well, fail, wait and stay away."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import psycopg
import pytest
from dagster._core.storage.dagster_run import DagsterRun
from dagster._daemon.types import DaemonHeartbeat
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from pipeline.core.settings import Settings, register_site
from pipeline.operations.health import webserver_finding
from pipeline.orchestration.switches import open_instance
from tests.command_line import CommandLine

ENTRY: dict[str, Any] = {
    "fhir_url": "https://epic.example.org/FHIR/R4",
    "client_id": "x",
    "private_key_env": "NO_KEY",
    "groups": ["g1", "g2"],
}


@pytest.fixture
def place(installed_url: str, tmp_path: Path) -> CommandLine:
    register_site(tmp_path, "north", ENTRY)
    register_site(tmp_path, "south", ENTRY | {"groups": ["g3"]})
    with psycopg.connect(installed_url) as connection:
        connection.execute("TRUNCATE etl.export_job, etl.cool_down, etl.next_kick_off")
    return CommandLine(tmp_path, installed_url, {"EPIC_OMOP_UI_URL": "http://127.0.0.1:1"})


def export(place: CommandLine, site: str, group: str, hours_ago: float, state: str = "published", **more: Any) -> None:
    at = datetime.now(UTC) - timedelta(hours=hours_ago)
    done = at if state == "published" else None
    with psycopg.connect(place.url) as connection:
        connection.execute(
            "INSERT INTO etl.export_job (site, group_id, kind, state, requested_at, landed_at, published_at, error, progress)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (site, group, more.get("kind", "bulk"), state, at, done, done, more.get("error"), more.get("progress")),
        )


def status(place: CommandLine, *, code: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(place.run("status", "--json", code=code).out)
    assert found["needs_person"] is bool(code)
    return found


def test_status_says_who_needs_a_person(place: CommandLine) -> None:
    for site, group in (("north", "g1"), ("north", "g2"), ("south", "g3")):
        export(place, site, group, 60)
        export(place, site, group, 2)
    well = status(place, code=0)
    assert [site["state"] for site in well["sites"]] == ["off", "off"], "nobody has switched their schedules on"
    assert well["daemon"] is None
    assert all(datetime.fromisoformat(site["last_published"]).tzinfo for site in well["sites"])

    export(place, "north", "g2", 1, "failed", error="The site answered 500.")
    failed = status(place, code=1)
    (problem,) = failed["problems"]
    assert (problem["kind"], problem["site"], problem["needs_person"]) == ("run_failed", "north", True)
    assert problem["command"] == "epic-omop run --site north"
    assert [site["state"] for site in failed["sites"]] == ["failed", "off"]
    shown = place.run("status", code=1).out
    assert "✗ north: A run failed." in shown
    assert "The site answered 500." in shown
    assert "→ epic-omop run --site north" in shown
    export(place, "north", "g2", 0.5)
    status(place, code=0)

    export(place, "north", "a folder", 0.4, "failed", kind="folder", error="It is no FHIR.")
    assert "ingest" in status(place, code=1)["problems"][0]["command"]
    export(place, "north", "a folder", 0.3, kind="folder")
    status(place, code=0)

    export(place, "north", "g1", 0.2, "running", progress="42 %")
    running = status(place, code=0)["sites"][0]
    assert (running["state"], running["running"][0]["progress"]) == ("running", "42 %")


def test_status_by_dagsters_own_state(place: CommandLine) -> None:
    export(place, "south", "g3", 80)
    export(place, "south", "g3", 60)
    until = datetime.now(UTC) + timedelta(hours=3)
    with psycopg.connect(place.url) as connection:
        connection.execute(
            "INSERT INTO etl.cool_down (site, client_id, group_id, next_try, reason) VALUES ('north', 'x', 'g1', %s, '')",
            (until,),
        )
    place.run("site", "enable", "south")
    with open_instance(Settings(home=place.home)) as instance:
        tags = {"epic_omop/site": "south"}
        for run_id, end in (("a", dg.DagsterRunStatus.FAILURE), ("b", dg.DagsterRunStatus.STARTED)):
            instance.add_run(DagsterRun("south__ingest", run_id=run_id * 8, status=end, tags=tags))
    found = status(place, code=1)
    north, south = found["sites"]
    assert found["daemon"] is False
    assert south["runs"]["last"]["status"] == "FAILURE"
    assert [run["status"] for run in south["runs"]["unfinished"]] == ["STARTED"]
    assert datetime.fromisoformat(south["runs"]["next_run"]) > datetime.now(UTC)
    assert {problem["kind"] for problem in found["problems"] if problem["needs_person"]} <= {
        "no_publication",
        "nothing_ran",
    }
    assert north["waiting"][0]["group"] == "g1"
    shown = place.run("status", code=1).out
    assert f"group g1 is in its cool-down until {until:%Y-%m-%d %H:%M} UTC" in shown
    assert "Dagster's daemon does not run" in shown


def test_one_screen_of_80_columns(place: CommandLine) -> None:
    narrow = CommandLine(place.home, place.url, {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb"})
    export(place, "north", "g1", 2)
    lines = narrow.run("status", code=None).out.split("\n")
    assert len(lines) < 24
    assert max(len(line) for line in lines if "/" not in line) <= 80
    assert any(line.split()[:2] == ["north", "off"] for line in lines)


def test_metrics_are_read_by_both_kinds_of_parsers(place: CommandLine, tmp_path: Path) -> None:
    export(place, "north", "g1", 2)
    export(place, "north", "g2", 1, "failed", error="Patient/secret-id cannot be read")
    file = tmp_path / "epic_omop.prom"
    place.run("metrics", "--textfile", file)
    text = file.read_text()
    assert file.stat().st_mode & 0o444 == 0o444
    assert "secret" not in text
    for parser in (open_metrics, prometheus_text):
        samples = [one for family in parser(text) for one in family.samples]
        found = {(sample.name, sample.labels.get("site")): sample.value for sample in samples}
        assert found["epic_omop_up", None] == 1
        assert found["epic_omop_site_failed_exports", "north"] == 1
        at = found["epic_omop_site_last_publication_timestamp_seconds", "north"]
        assert 7000 < time.time() - at < 7400
        assert found["epic_omop_problems", "north"] == 1
    documented = Path("docs/status.md").read_text(encoding="utf-8")
    assert [name for name in {sample.name for sample in samples} if f"`{name}`" not in documented] == []
    gone = CommandLine(place.home, "postgresql://nobody@127.0.0.1:1/none")
    assert "epic_omop_up 0.0" in gone.run("metrics", code=1).out
    assert "contradict" in place.run("metrics", "--textfile", file, "--port", "1", code=2).err
    assert place.run("metrics", "--textfile", tmp_path / "nowhere" / "x.prom", code=None).code in (2, 74)


def test_the_endpoint_measures_at_each_question(place: CommandLine) -> None:
    with psycopg.connect(place.url):
        port = _free_port()
    child = place.start("metrics", "--port", str(port))
    try:
        child.err.line(f"http://127.0.0.1:{port}/metrics")
        for hours, failed in ((2, 0), (1, 1)):
            export(place, "north", "g1", hours, "failed" if failed else "published")
            answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60, trust_env=False)
            assert answer.headers["content-type"].startswith("application/openmetrics-text")
            assert f'epic_omop_site_failed_exports{{site="north"}} {failed}.0' in answer.text
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=60, trust_env=False).status_code == 404
    finally:
        child.kill()
        child.finish()


def _free_port() -> int:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_port


def test_health_of_each_service(place: CommandLine) -> None:
    found = json.loads(place.run("health", "--json", code=1).out)
    assert [(one["what"], one["state"]) for one in found] == [
        ("warehouse", "ok"),
        ("daemon", "failed"),
        ("webserver", "failed"),
    ]
    assert all(one["advice"] for one in found if one["state"] == "failed")
    place.run("health", "warehouse")
    gone = CommandLine(place.home, "postgresql://nobody@127.0.0.1:1/none")
    assert "failed" in gone.run("health", "warehouse", code=1).out
    with open_instance(Settings(home=place.home)) as instance:
        for kind in instance.get_required_daemon_types():
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), kind, "x", []))
    place.run("health", "daemon")
    with open_instance(Settings(home=place.home)) as instance:
        for kind in instance.get_required_daemon_types():
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 400, kind, "x", []))
    place.run("health", "daemon", code=1)


class _Stranger(BaseHTTPRequestHandler):
    """A server that is not Dagster's, at the port that was meant."""

    def do_GET(self) -> None:
        self.send_response(404 if "missing" in self.path else 200)
        self.end_headers()
        self.wfile.write(b"[]" if "list" in self.path else b"<html>" if "page" in self.path else b"{}")

    def log_message(self, *_: object) -> None: ...


def test_another_server_is_not_dagsters_webserver() -> None:
    with HTTPServer(("127.0.0.1", 0), _Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path in ("", "/list", "/page", "/missing"):
            found = webserver_finding(f"http://127.0.0.1:{server.server_port}{path}")
            assert found.state == "failed"
            assert "is not Dagster's webserver" in found.found
        server.shutdown()
    for url in ("http://127.0.0.1:1", "nonsense", "http://[::", "ftp://x"):
        assert webserver_finding(url).state == "failed"
