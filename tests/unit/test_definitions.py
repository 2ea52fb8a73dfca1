"""What Dagster is given for no site, one and several: names and keys are an interface for people and for the UI."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config

from omop_schema.etl import LINEAGE_TABLES
from omop_schema.exports import ExportKind, ExportState
from omop_schema.versions import CdmVersion
from pipeline.core.clock import ManualClock
from pipeline.core.errors import ConfigurationError, RemoteUnavailable, WarehouseError
from pipeline.core.settings import Settings, SiteSettings
from pipeline.orchestration.definitions import build_definitions
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.freshness import longest_gap
from pipeline.orchestration.instance import dagster_environment, prepare_instance
from pipeline.orchestration.partitions import day_of
from pipeline.orchestration.run_metadata import table_value
from pipeline.orchestration.warehouse_assets import OTHER_TABLES
from pipeline.quality.checks.concepts import ONE_RELEASE, concept_rules
from pipeline.quality.checks.history import history_rules
from pipeline.quality.checks.rules import all_rules
from pipeline.warehouse.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]
NORTH = SiteSettings(
    name="north",
    fhir_url="https://north.example/api/FHIR/R4",
    client_id="client",
    private_key_env="NORTH_KEY",
    groups=("g1", "g2"),
    time_zone="America/Chicago",
    schedule="30 2 * * *",
)
SIMULATED = NORTH.model_copy(update={"name": "simulated", "test_mode": True, "time_zone": "Asia/Kolkata"})
FOLDERS = SiteSettings(name="folders")


def settings(tmp_path: Path, *sites: SiteSettings) -> Settings:
    return Settings(home=tmp_path / "home", sites={site.name: site for site in sites})


def keys(definitions: dg.Definitions) -> list[str]:
    return sorted(key.to_user_string() for key in definitions.resolve_all_asset_keys())


def names(definitions: dg.Definitions) -> dict[str, list[str]]:
    repository = definitions.get_repository_def()
    return {
        "jobs": sorted(job.name for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")),
        "schedules": sorted(schedule.name for schedule in repository.schedule_defs),
        "sensors": sorted(sensor.name for sensor in repository.sensor_defs),
        "checks": sorted(key.to_user_string() for key in definitions.resolve_asset_graph().asset_check_keys),
    }


def test_without_a_site_there_are_only_the_tables(tmp_path: Path) -> None:
    definitions = build_definitions(settings(tmp_path))
    assert keys(definitions) == sorted(f"cdm/{table}" for table in (*LINEAGE_TABLES, *OTHER_TABLES))
    assert names(definitions) == {"jobs": [], "schedules": [], "sensors": [], "checks": []}


def test_every_site_has_its_own_parts(tmp_path: Path) -> None:
    definitions = build_definitions(settings(tmp_path, NORTH, SIMULATED, FOLDERS))
    assert [key for key in keys(definitions) if not key.startswith("cdm/")] == [
        "folders/landing",
        "folders/load",
        "north/landing",
        "north/load",
        "simulated/landing",
        "simulated/load",
    ]
    assert names(definitions) == {
        "jobs": [
            "deep_check",
            "folders__ingest",
            "folders__prune_landing",
            "north__ingest",
            "north__kick_off",
            "north__prune_landing",
            "replay_dead_letters",
            "retention",
            "simulated__ingest",
            "simulated__kick_off",
            "simulated__prune_landing",
            "warehouse_checks__run",
        ],
        "schedules": [
            "deep_check__nightly",
            "north__nightly",
            "retention__daily",
            "simulated__nightly",
            "warehouse_checks__nightly",
        ],
        "sensors": ["alerts", "north__exports", "run_failures", "run_successes", "simulated__exports"],
        "checks": [
            *sorted(
                [
                    *(f"cdm/{table}:{check}" for table in LINEAGE_TABLES for check in OF_TABLES),
                    *(f"cdm/{table}:concepts_valid" for table in OTHER_TABLES if table != "cdm_source"),
                    "cdm/cdm_source:one_vocabulary_release",
                ]
            ),
            *(f"{site}/load:{check}" for site in ("folders", "north", "simulated") for check in sorted(OF_SITES)),
        ],
    }


OF_TABLES = ("concepts_valid", "rows_are_there_once", "rows_have_sources", "sources_have_rows")
OF_SITES = (
    *("accounting", "coverage", "deep"),
    *(
        "accounts_exist",
        "exclusions_have_reasons",
        "rejections_have_dead_letters",
        "orders_count_once",
        "records_have_rows",
    ),
    *("mapping_rate_as_before", "lines_as_before", "rows_removed_as_before", "dead_letters_as_before"),
)


@pytest.mark.parametrize("version", CdmVersion)
def test_what_verify_asks_of_rules_is_a_check_of_an_asset_that_is_there(tmp_path: Path, version: CdmVersion) -> None:
    """`one a rule and table`: a rule about accounts is a check of each site's load."""
    of_version = settings(tmp_path, NORTH, FOLDERS).model_copy(update={"cdm_version": version})
    definitions = build_definitions(of_version)
    checks = definitions.resolve_asset_graph().asset_check_keys
    for rule in (*all_rules(), *concept_rules(version), *history_rules(), ONE_RELEASE):
        asked = {key.asset_key.to_user_string() for key in checks if key.name == rule.name}
        if rule.cdm_table:
            assert f"cdm/{rule.cdm_table}" in asked, rule.title
        elif rule != ONE_RELEASE:
            assert asked == {"north/load", "folders/load"}, rule.title
    assert {key.asset_key for key in checks} <= set(definitions.resolve_all_asset_keys())


def test_a_load_asks_nothing_that_all_sites_have_in_common(tmp_path: Path) -> None:
    """Its cost would grow with the sites times the warehouse."""
    job = build_definitions(settings(tmp_path, NORTH, SIMULATED)).resolve_job_def("north__ingest")
    assert {node.name for node in job.graph.node_defs} == {
        "north__landing",
        "north__load",
        "north__load_accounting",
        "north__load_coverage",
    }


def test_a_load_is_late_by_the_sites_own_schedule(tmp_path: Path) -> None:
    weekly = NORTH.model_copy(update={"schedule": "0 1 * * 1"})
    weekdays = NORTH.model_copy(update={"schedule": "0 1 * * 1-5"})
    gaps = {"weekly": longest_gap(weekly), "weekdays": longest_gap(weekdays), "nightly": longest_gap(NORTH)}
    assert {name: round(gap / timedelta(days=1)) for name, gap in gaps.items()} == {
        "weekly": 7,
        "weekdays": 3,
        "nightly": 1,
    }
    graph = build_definitions(settings(tmp_path, NORTH, FOLDERS)).resolve_asset_graph()
    assert graph.get(dg.AssetKey(["north", "load"])).freshness_policy is not None
    assert graph.get(dg.AssetKey(["folders", "load"])).freshness_policy is None, (
        "its folders come when somebody brings them"
    )


def test_the_lineage_goes_from_landing_to_the_shared_tables(tmp_path: Path) -> None:
    graph = build_definitions(settings(tmp_path, NORTH, FOLDERS)).resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get(dg.AssetKey(["north", "load"])).parent_keys} == {"north/landing"}
    person = graph.get(dg.AssetKey(["cdm", "person"]))
    assert {key.to_user_string() for key in person.parent_keys} == {"north/load", "folders/load"}
    assert person.partitions_def is None
    assert not person.is_executable, "a load fills it; it is not run by itself"
    columns = person.metadata["dagster/column_schema"]
    assert isinstance(columns, dg.TableSchema)
    assert [column.name for column in columns.columns][:2] == ["person_id", "gender_concept_id"]


def test_the_days_are_those_of_the_site(tmp_path: Path) -> None:
    night = datetime(2026, 3, 2, 4, 30, tzinfo=UTC)  # 22:30 on the day before in Chicago
    runtime = Runtime(settings(tmp_path, NORTH), ManualClock(night))
    graph = build_definitions(runtime.settings, {"runtime": runtime}).resolve_asset_graph()
    partitions = graph.get(dg.AssetKey(["north", "landing"])).partitions_def
    assert isinstance(partitions, dg.DailyPartitionsDefinition)
    assert day_of(NORTH, night) == "2026-03-01"
    with_today = partitions.get_partition_keys(current_time=night)
    assert with_today[-1] == "2026-03-01", "today's partition is there"


def test_one_run_a_site_at_a_time(tmp_path: Path) -> None:
    definitions = build_definitions(settings(tmp_path, NORTH))
    pools = {definitions.resolve_assets_def(dg.AssetKey(["north", name])).op.pool for name in ("landing", "load")}
    assert pools == {"site:north"}
    config = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    assert config["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}


def test_schedules_run_by_the_sites_clock_and_none_by_itself(tmp_path: Path) -> None:
    definitions = build_definitions(settings(tmp_path, NORTH, SIMULATED))
    north = definitions.resolve_schedule_def("north__nightly")
    assert (north.cron_schedule, north.execution_timezone) == ("30 2 * * *", "America/Chicago")
    assert north.default_status is dg.DefaultScheduleStatus.STOPPED, "a person switches it on"
    assert definitions.resolve_schedule_def("simulated__nightly").default_status is dg.DefaultScheduleStatus.STOPPED
    tick = datetime(2026, 3, 2, 8, 30, tzinfo=UTC)
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance, scheduled_execution_time=tick.astimezone(NORTH.zone))
        (request,) = north.evaluate_tick(context).run_requests or []
    assert request.tags["epic_omop/day"] == "2026-03-02"
    assert north.job_name == "north__kick_off"


def test_overrides_replace_resources(tmp_path: Path) -> None:
    own = Runtime(settings(tmp_path, NORTH))
    definitions = build_definitions(own.settings, {"runtime": own})
    assert dict(definitions.resources or {})["runtime"] is own


@pytest.mark.parametrize("sites", [{}, {"north": {"time_zone": "Europe/Berlin"}, "south": {}}])
def test_dagster_itself_finds_them_valid(tmp_path: Path, sites: dict[str, dict[str, str]]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "sites.yaml").write_text(yaml.safe_dump({"sites": sites}))
    here = Settings(home=home)
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "pipeline.definitions"]
    environment = dagster_environment(here, prepare_instance(here))
    done = subprocess.run(command, check=False, cwd=home, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All code locations passed validation" in done.stdout + done.stderr


def test_the_instance_folder_holds_our_dagster_yaml(tmp_path: Path) -> None:
    here = settings(tmp_path)
    folder = prepare_instance(here)
    assert folder == here.home / "dagster"
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "dagster.yaml").write_text("changed: by hand")
    assert prepare_instance(here) == folder
    assert (folder / "dagster.yaml").read_bytes() == (ROOT / "dagster.yaml").read_bytes()
    config, _ = dagster_instance_config(str(folder))  # raises for what Dagster does not know
    assert config["telemetry"] == {"enabled": False}
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ConfigurationError, match="cannot be prepared"):
        prepare_instance(settings(tmp_path))


def test_dagsters_processes_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EPIC_OMOP_SITES", "own/sites.yaml")
    environment = dagster_environment(settings(tmp_path), tmp_path / "dagster")
    assert environment["EPIC_OMOP_SITES"] == str(tmp_path / "own/sites.yaml")
    assert environment["DAGSTER_HOME"] == str(tmp_path / "dagster")


SECRET = "Doe, Jane 1970-01-01"


@pytest.mark.parametrize(
    ("error", "told", "may_retry"),
    [
        (RemoteUnavailable("The site does not answer.", "Wait."), "The site does not answer. Wait.", True),
        (WarehouseError("PostgreSQL is full."), "PostgreSQL is full.", False),
        (
            psycopg.errors.UniqueViolation(f"Key (value)=({SECRET})"),
            "Unexpected psycopg.errors.UniqueViolation at",
            False,
        ),
        (ValueError(SECRET), "Unexpected builtins.ValueError at", False),
    ],
)
def test_failures_say_what_and_where_but_no_values(error: Exception, told: str, may_retry: bool) -> None:
    @dg.op
    def failing() -> None:
        with raise_as_failures():
            raise error from KeyError(SECRET)

    @dg.job
    def job() -> None:
        failing()

    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        stored = "".join(entry.to_json() for entry in instance.all_logs(result.run_id))
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert (failure.user_failure_data.description or "").startswith(told)
    with pytest.raises(dg.Failure) as caught, raise_as_failures():
        raise error
    assert caught.value.allow_retries is may_retry
    assert SECRET not in stored
    assert "Unexpected" not in told or "test_definitions.py:" in stored, "the place is named"


def test_a_table_without_rows_still_has_its_head() -> None:
    empty = table_value(("a", "b"), [])
    assert [column.name for column in empty.schema.columns] == ["a", "b"]
    full = table_value(("a", "b", "c"), [("x", 1, 0.5)])
    assert [column.type for column in full.schema.columns] == ["string", "int", "float"]


# --- docker-compose.yml ---------------------------------------------------------------------------------------------------


def compose() -> dict[str, dict[str, dict[str, object]]]:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert isinstance(document, dict)
    return document


def test_ports_are_open_to_this_machine_alone() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]  # type: ignore[attr-defined]
    assert len(ports) == 3
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def test_services_wait_for_what_exists() -> None:
    document = compose()
    for name, service in document["services"].items():
        waited = service.get("depends_on", {})
        assert isinstance(waited, dict)
        assert set(waited) <= set(document["services"]), name
        for mount in service.get("volumes", []):  # type: ignore[attr-defined]
            assert str(mount).partition(":")[0] in document["volumes"], name


def test_states_are_texts_in_metadata() -> None:
    """Dagster cannot store members of enumerations that are not its own."""
    table = table_value(("state", "kind", "files"), [(ExportState.LANDED, ExportKind.BULK, 3)])
    (record,) = table.records
    assert record.data == {"state": "landed", "kind": "bulk", "files": 3}
    assert [type(value) for value in record.data.values()] == [str, str, int]
