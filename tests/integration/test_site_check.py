"""`epic-omop site check` against the simulated Epic: the first day at a site that works, and at those that do not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer
from starlette.requests import Request
from starlette.responses import Response
from typer.testing import CliRunner, Result

from pipeline.commands import export as export_command
from pipeline.core.findings import Finding
from pipeline.core.settings import SiteSettings, register_site
from pipeline.extract.site_check import check_site
from pipeline.sandbox.config import RegisteredClient
from pipeline.warehouse.schema import install_schemas
from tests.hostile_epic import CLIENT_ID, PUBLIC_PEM, HostileEpic, ShiftedClock, running, site_entry

EXPECTED = {
    "settings": "warning",  # test mode
    "private key": "ok",
    "hosted JWK Set": "not checked",
    "discovery": "ok",
    "clock": "ok",
    "token": "ok",
    "scopes": "ok",
    "capabilities": "ok",
    "bulk export": "ok",
    "resource types": "ok",
    "group g1": "ok",
    "kick-off": "not checked",
}


@pytest.fixture
def epic() -> Iterator[HostileEpic]:
    with running(HostileEpic(ShiftedClock())) as epic:
        yield epic


def checked(epic: HostileEpic, folder: Path, **changes: Any) -> dict[str, Finding]:
    site = SiteSettings(name="site_a", **site_entry(epic, folder, **changes))
    return {finding.what: finding for finding in check_site(site, epic.clock)}


def states(findings: dict[str, Finding]) -> dict[str, str]:
    return {what: finding.state for what, finding in findings.items()}


def test_a_site_that_works(epic: HostileEpic, tmp_path: Path) -> None:
    findings = checked(epic, tmp_path)
    assert states(findings) == EXPECTED
    assert "FHIR 4.0.1, Simulated Epic" in findings["capabilities"].found
    assert not [path for path in epic.paths if "$export" in path or "BulkRequest" in path]
    assert epic.state.desk._state.kickoffs == {}


def test_outside_of_test_mode_nothing_leaves_this_machine(epic: HostileEpic, tmp_path: Path) -> None:
    url = epic.fhir_url.replace("http://127.0.0.1", "https://localhost")
    findings = checked(epic, tmp_path, fhir_url=url, test_mode=False)
    assert findings["settings"].state == "ok"
    assert findings["discovery"].state == "failed"
    assert "private_networks" in findings["discovery"].advice
    assert findings["token"].state == findings["scopes"].state == findings["groups"].state == "not checked"
    assert epic.requests == []


def test_an_unknown_client_is_told_with_the_four_things(epic: HostileEpic, tmp_path: Path) -> None:
    findings = checked(epic, tmp_path, client_id="another")
    assert findings["token"].state == "failed"
    for hint in ("(1) client_id another", "(2)", "(3)", "(4)"):
        assert hint in findings["token"].advice
    assert findings["scopes"].state == "not checked"
    assert findings["capabilities"].state == "ok"


def test_scopes_types_and_groups_that_are_missing(tmp_path: Path) -> None:
    client = RegisteredClient(CLIENT_ID, (PUBLIC_PEM,), ("system/Patient.read",))
    with running(HostileEpic(ShiftedClock(), options={"clients": (client,)})) as epic:
        findings = checked(epic, tmp_path, resource_types=["Patient", "Observation"], groups=["g1", "g2"])
    assert "not granted: Observation" in findings["scopes"].found
    assert findings["scopes"].state == "warning"
    assert "does not name: Observation" in findings["resource types"].found
    assert (findings["group g1"].state, findings["group g2"].state) == ("not checked", "not checked")


def test_a_group_that_the_site_does_not_know(epic: HostileEpic, tmp_path: Path) -> None:
    findings = checked(epic, tmp_path, groups=["g1", "typo"])
    assert (findings["group g1"].state, findings["group typo"].state) == ("ok", "failed")


def test_a_clock_that_is_wrong(tmp_path: Path) -> None:
    with running(HostileEpic(ShiftedClock())) as epic:
        site = SiteSettings(name="site_a", **site_entry(epic, tmp_path))
        findings = {finding.what: finding for finding in check_site(site, ShiftedClock(timedelta(minutes=10)))}
    assert findings["clock"].state == "failed"
    assert re.search(r"differs from the site's by -60[01] s", findings["clock"].found)


@pytest.mark.parametrize("stated", [{"fhirVersion": "3.0.2"}, {"rest": []}, {}])
def test_a_server_of_another_kind(epic: HostileEpic, tmp_path: Path, stated: dict[str, Any]) -> None:
    statement = orjson.dumps({"resourceType": "CapabilityStatement", **stated})

    def answer(_: int, request: Request) -> Response | None:
        return Response(statement) if request.url.path.endswith("/metadata") else None

    epic.answer = answer
    findings = checked(epic, tmp_path)
    assert findings["capabilities"].state == "failed"
    assert findings["bulk export"].state == "warning"
    assert findings["groups"].state == "not checked"


def test_a_key_that_the_site_does_not_take(epic: HostileEpic, tmp_path: Path) -> None:
    document = {"token_endpoint": f"{epic.url}/oauth2/token"}
    document["token_endpoint_auth_signing_alg_values_supported"] = ["RS384"]  # type: ignore[assignment]  # JSON

    def answer(_: int, request: Request) -> Response | None:
        return Response(orjson.dumps(document)) if request.url.path.endswith("smart-configuration") else None

    epic.answer = answer
    findings = checked(epic, tmp_path)
    assert "takes RS384, the key signs ES384" in findings["discovery"].found


def test_a_server_that_is_down(epic: HostileEpic, tmp_path: Path) -> None:
    epic.answer = lambda *_: Response(status_code=503)
    findings = checked(epic, tmp_path)
    assert {what: state for what, state in states(findings).items() if state == "failed"} == {
        "discovery": "failed",
        "capabilities": "failed",
    }
    assert len(epic.requests) <= 4


# --- the command


@pytest.fixture
def program() -> typer.Typer:
    app = typer.Typer()
    export_command.register(app)
    return app


def run(program: typer.Typer) -> Result:
    return CliRunner().invoke(program, ["site", "check", "site_a"], terminal_width=200)


def test_the_command_before_there_is_a_warehouse(
    epic: HostileEpic, tmp_path: Path, program: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_site(tmp_path, "site_a", site_entry(epic, tmp_path))
    monkeypatch.setenv("EPIC_OMOP_HOME", str(tmp_path))
    monkeypatch.delenv("EPIC_OMOP_DATABASE_URL", raising=False)
    told = run(program)
    assert told.exit_code == 0, told.output
    assert "Nothing is in the way of the first run" in told.output
    assert not (tmp_path / "postgres").exists()
    epic.state.tokens._clients.clear()
    failed = run(program)
    assert failed.exit_code == 1
    assert "invalid_client" in failed.output


def test_the_command_leaves_entries_in_the_access_log(
    epic: HostileEpic, tmp_path: Path, program: typer.Typer, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    import psycopg

    register_site(tmp_path, "site_a", site_entry(epic, tmp_path))
    monkeypatch.setenv("EPIC_OMOP_HOME", str(tmp_path))
    monkeypatch.setenv("EPIC_OMOP_DATABASE_URL", database_url)
    assert run(program).exit_code == 0  # an empty database is no obstacle
    install_schemas(database_url, cdm="cdm", vocab="vocab", etl="etl")
    assert run(program).exit_code == 0
    with psycopg.connect(database_url) as connection:
        events = [row[0] for row in connection.execute("SELECT event FROM etl.access_log ORDER BY id").fetchall()]
        (requests,) = connection.execute("SELECT requests FROM etl.request_count").fetchone()  # type: ignore[misc]  # one row
    first = ["discovery", "discovery", "auth start", "token", "capabilities"]
    assert events == [*first, "discovery", "auth start", "token", "read"]
    assert requests == len(events) - 2
