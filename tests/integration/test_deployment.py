"""docker-compose.yml, the Dockerfile and deploy/systemd: checked by their own schemas and tools, and run.

Every service's exact command runs with its own variables, with a read-only file system, against a real PostgreSQL; its health
check says when it is ready. Nothing here needs Docker or systemd; without namespaces the walks are skipped and say why.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from pipeline.warehouse.embedded.binaries import installed_binaries
from tests.databases import Prepared
from tests.service_world import ROOT, ServiceWorld, service_world, why_not

COMPOSE = ROOT / "docker-compose.yml"
UNITS = ROOT / "deploy" / "systemd"
NO_WORLD = why_not()
#: In the order in which they start.
STARTED = ("sandbox", "dagster-code", "dagster-webserver", "dagster-daemon")
PORTS = {"sandbox": 8090, "dagster-code": 4000, "dagster-webserver": 3000}
#: How the services say that a place cannot be written.
REFUSALS = ("Read-only file system", "Errno 30", "Permission denied", "Traceback")


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def interpolated(text: str, given: Mapping[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?why}` as Compose reads them."""

    def value(found: re.Match[str]) -> str:
        name, kind, word = found["name"], found["kind"], found["word"]
        assert kind == ":-" or name in given, f"{name}: {word}"
        return given.get(name) or word

    return re.sub(r"\$\{(?P<name>\w+)(?P<kind>:[-?])(?P<word>[^}]*)\}", value, text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document = yaml.safe_load(interpolated(COMPOSE.read_text(), {"EPIC_OMOP_SECRETS_FOLDER": "/secrets"}))
    assert isinstance(document, dict)
    return document


# --- what their own tools say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["as it is", "interpolated"])
def test_compose_file_keeps_to_the_specification(form: str, compose: dict[str, Any], tmp_path: Path) -> None:
    file = COMPOSE
    if form == "interpolated":
        file = tmp_path / "docker-compose.yml"
        file.write_text(yaml.safe_dump(compose))
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    looked = subprocess.run([*check, file], check=False, capture_output=True, text=True, timeout=120)
    assert looked.returncode == 0, looked.stdout
    if form == "interpolated":
        broken = file.read_text().replace("read_only:", "readonly:")
        file.write_text(broken)
        assert subprocess.run([*check, file], check=False, capture_output=True, timeout=120).returncode == 1


def test_dockerfile_is_clean_by_hadolint() -> None:
    looked = subprocess.run(
        [tool("hadolint"), "--no-color", ROOT / "Dockerfile"], check=False, capture_output=True, text=True, timeout=120
    )
    assert (looked.returncode, looked.stdout) == (0, ""), looked.stdout + looked.stderr


def test_every_service_is_closed_limited_and_checked(compose: dict[str, Any]) -> None:
    once = {"init", "cli"}
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert service["logging"]["options"] == {"max-size": "20m", "max-file": "5"}, name
        assert service["secrets"] == ["database_password"], name
        assert (service.get("restart") == "unless-stopped") == (name not in once), name
        assert ("healthcheck" in service) == (name not in {*once, "watcher"}), name
        written = " ".join(map(str, service.get("environment", {}).values()))
        assert not re.search(r"://[^/@]*:[^/@]*@", written), "no password is written"
    assert [name for name, one in compose["services"].items() if "cap_add" in one] == ["postgres"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["10001:10001"]


def test_minimum_versions_are_those_of_what_is_used(compose: dict[str, Any]) -> None:
    """Docker Engine 25.0: start_interval. Compose 2.24: env_file that is not required."""
    assert any("start_interval" in one.get("healthcheck", {}) for one in compose["services"].values())
    assert not compose["services"]["cli"]["env_file"][0]["required"]
    for text in (COMPOSE.read_text(), (ROOT / "docs" / "deployment.md").read_text()):
        assert "Docker Engine 25.0" in " ".join(text.split())
        assert re.search(r"Compose #? ?2\.24", " ".join(text.split()))


# --- Compose's services, run ------------------------------------------------------------------------------------------------


def service_command(service: Mapping[str, Any]) -> list[str]:
    return [*service.get("entrypoint", []), *map(str, service["command"])]


def service_environment(service: Mapping[str, Any], database: str) -> dict[str, str]:
    """Its variables; only the database has another name, because several tests share the server. And the user's home of the
    image."""
    variables = {name: str(value) for name, value in service["environment"].items()}
    url = variables["EPIC_OMOP_DATABASE_URL"]
    assert url.endswith("@postgres:5432/epic_omop")
    return {**variables, "HOME": "/data", "EPIC_OMOP_DATABASE_URL": f"{url.rpartition('/')[0]}/{database}"}


@pytest.fixture
def world(tmp_path: Path, installed_database: Prepared) -> Iterator[tuple[ServiceWorld, str]]:
    """A world with a database, and its name. Its `/data` and `/srv/epic-omop` are one folder outside."""
    data, secrets = tmp_path / "data", tmp_path / "secrets"
    data.mkdir()
    secrets.mkdir()
    with installed_database.copy() as url:
        parts = urlsplit(url)
        (secrets / "database_password").write_text(f"{parts.password or 'none is asked for'}\n")
        run, backups = tmp_path / "run", tmp_path / "backups"
        run.mkdir()
        backups.mkdir()
        places = {
            "/data": data, "/srv/epic-omop": data, "/run/secrets": secrets, "/run/epic-omop": run,
            "/var/lib/epic-omop-metrics": run, "/var/backups/epic-omop": backups,
        }  # fmt: skip
        names = ("postgres", "dagster-code", "sandbox")
        with service_world(tmp_path / "world", places, names, url) as made:
            yield made, parts.path.removeprefix("/")


def refused(world: ServiceWorld) -> list[str]:
    """Lines of the services' logs that say that a place cannot be written."""
    return [
        f"{log.name}: {line}"
        for log in world.folder.glob("*.log")
        for line in log.read_text(errors="replace").splitlines()
        if any(word in line for word in REFUSALS)
    ]


@pytest.mark.skipif(bool(NO_WORLD), reason=NO_WORLD)
def test_every_service_of_the_compose_file_runs(
    compose: dict[str, Any], world: tuple[ServiceWorld, str], tmp_path: Path
) -> None:
    place, database = world
    services = compose["services"]
    environments = {
        name: service_environment(one, database) for name, one in services.items() if one.get("image") == "epic-omop"
    }
    kind, program, *arguments = services["postgres"]["healthcheck"]["test"]
    ready = place.run([installed_binaries().program(program), *arguments], {})
    assert (kind, ready.returncode) == ("CMD", 0), ready.stdout
    made = place.run(service_command(services["init"]), environments["init"])
    assert made.returncode == 0, made.stderr
    for name in STARTED:
        place.start(name, service_command(services[name]), environments[name])
        if name in PORTS:
            place.wait_listening(PORTS[name])
        kind, *check = services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        place.wait_healthy(name, check, environments[name])
    # A run, by the daemon's queue and the code server: what it writes is allowed, too.
    status = place.run([*services["cli"]["entrypoint"], "site", "list"], environments["cli"])
    assert "sandbox" in status.stdout, status.stderr
    assert launched(place, environments["dagster-daemon"]) == "SUCCESS"
    watched = re.search(r"do (?P<command>[^;]*);", services["watcher"]["command"][2])
    assert watched
    looked = place.run(shlex.split(watched["command"]), environments["watcher"])
    assert looked.returncode in (0, 1), looked.stderr
    assert "Traceback" not in looked.stderr
    helped = place.run(service_command(services["cli"]), environments["cli"])
    assert "Usage" in helped.stdout
    assert {name: place.stop(name) for name in reversed(STARTED)} == dict.fromkeys(STARTED, 0)
    assert not refused(place)
    assert not list((tmp_path / "data").rglob("*.db")), "Dagster's storage is in PostgreSQL"


#: What the UI does when somebody presses "Launch run".
_LAUNCH = """
import json, sys, time, urllib.request
def ask(query, **variables):
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request("http://127.0.0.1:3000/graphql", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))["data"]
chosen = {"repositoryName": "__repository__", "repositoryLocationName": "pipeline.definitions", "jobName": sys.argv[1]}
launch = ask('''mutation($it: ExecutionParams!) { launchRun(executionParams: $it) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }''', it={"selector": chosen})
assert launch["launchRun"]["__typename"] == "LaunchRunSuccess", launch
run = launch["launchRun"]["run"]["runId"]
while True:
    status = ask("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run)["runOrError"]["status"]
    if status in ("SUCCESS", "FAILURE", "CANCELED"):
        print(status)
        break
    time.sleep(1)
"""


def launched(world: ServiceWorld, environment: Mapping[str, str], job: str = "sandbox__kick_off") -> str:
    """How a run ended that was launched through the webserver."""
    ran = world.run([sys.executable, "-c", _LAUNCH, job], environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


# --- systemd's units ---------------------------------------------------------------------------------------------------------


def unit_lines(unit: Path, key: str) -> list[str]:
    """Values of a key, of the drop-in for all units first."""
    files = [UNITS / "epic-omop-.service.d" / "common.conf", unit]
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [value for name, is_set, value in (line.partition("=") for line in lines) if is_set and name == key]


def unit_environment(unit: Path, database: str) -> dict[str, str]:
    own = dict(line.split("=", 1) for line in unit_lines(unit, "Environment"))
    settings = {
        "EPIC_OMOP_DATABASE_URL": f"postgresql://epic_omop@postgres:5432/{database}",
        "EPIC_OMOP_DATABASE_PASSWORD_FILE": "/run/secrets/database_password",
        "EPIC_OMOP_DAGSTER_SCHEMA": "dagster",
    }
    return {**own, **settings, "HOME": "/srv/epic-omop"}


def exec_lines(name: str) -> list[list[str]]:
    return [shlex.split(line) for line in unit_lines(UNITS / name, "ExecStart")]


@pytest.fixture
def units_here(tmp_path: Path) -> Path:
    """The units with this installation's paths: systemd-analyze wants to see the programs."""
    for file in UNITS.rglob("*.*"):
        if file.is_file():
            target = tmp_path / file.relative_to(UNITS)
            target.parent.mkdir(exist_ok=True)
            text = file.read_text().replace("/opt/epic-omop/.venv", sys.prefix)
            target.write_text(text.replace("/opt/epic-omop", str(ROOT)))
    return tmp_path


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_units_are_right_by_systemd_and_hardly_exposed(units_here: Path) -> None:
    units = sorted(path.name for path in units_here.iterdir() if path.suffix in (".service", ".timer", ".target"))
    environment = {"SYSTEMD_UNIT_PATH": f"{units_here}:", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes"]
    looked = subprocess.run(
        [*verify, *units], check=False, capture_output=True, text=True, cwd=units_here, env=environment, timeout=120
    )
    assert (looked.returncode, looked.stderr) == (0, ""), looked.stderr
    for unit in (name for name in units if name.endswith(".service")):
        security = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit]
        looked = subprocess.run(
            security, check=False, capture_output=True, text=True, cwd=units_here, env=environment, timeout=120
        )
        assert looked.returncode == 0, f"{unit}: {looked.stdout[-300:]}{looked.stderr}"


def test_every_unit_is_named_in_its_page() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    names = [path.name for path in UNITS.iterdir() if path.is_file()]
    assert [name for name in names if name not in page and name.removesuffix(".service") not in page] == []


@pytest.mark.deep
@pytest.mark.skipif(bool(NO_WORLD), reason=NO_WORLD)
def test_the_units_that_run_once_do_their_work(world: tuple[ServiceWorld, str], tmp_path: Path) -> None:
    """Each ExecStart line, as it is written, where only what the unit names can be written."""
    place, database = world
    place.working_folder = "/srv/epic-omop"
    once = ["epic-omop-prepare.service", *(f"{path.stem}.service" for path in sorted(UNITS.glob("*.timer")))]
    for name in once:
        unit = UNITS / name
        assert unit_lines(unit, "Type") == ["oneshot"], name
        for command in exec_lines(name):
            ran = place.run(command, unit_environment(unit, database))
            usual = {0, 1} if name == "epic-omop-alerts.service" else {0}
            assert ran.returncode in usual, f"{command}: {ran.returncode} {ran.stdout} {ran.stderr}"
            assert not any(word in ran.stdout + ran.stderr for word in REFUSALS), ran.stderr
    assert list((tmp_path / "backups").rglob("database.dump"))
    assert "epic_omop_up" in (tmp_path / "run" / "epic_omop.prom").read_text()


@pytest.mark.deep
@pytest.mark.skipif(bool(NO_WORLD), reason=NO_WORLD)
def test_the_units_that_stay_run_together(world: tuple[ServiceWorld, str], tmp_path: Path) -> None:
    """Code server by its socket, webserver and daemon by the workspace file beside the units; a run through all three."""
    place, database = world
    place.working_folder = "/srv/epic-omop"
    (tmp_path / "data" / "sites.yaml").write_text("sites:\n  north: {time_zone: UTC}\n")
    stay = ["epic-omop-code.service", "epic-omop-webserver.service", "epic-omop-daemon.service"]
    for command in exec_lines("epic-omop-prepare.service"):
        assert place.run(command, unit_environment(UNITS / "epic-omop-prepare.service", database)).returncode == 0
    for name in stay:
        unit = UNITS / name
        (command,) = exec_lines(name)
        place.start(name, command, unit_environment(unit, database))
        if "-s" in command:
            wait_for(tmp_path / "run" / "code.socket")
    environment = unit_environment(UNITS / stay[1], database)
    place.wait_listening(3000)
    place.wait_healthy(stay[1], ["epic-omop", "health", "webserver"], environment)
    place.wait_healthy(stay[2], ["dagster-daemon", "liveness-check"], environment)
    assert launched(place, environment, "retention") == "SUCCESS"
    assert {name: place.stop(name) for name in reversed(stay)} == dict.fromkeys(stay, 0)
    assert not refused(place)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"{path} is not there"
        time.sleep(0.2)
