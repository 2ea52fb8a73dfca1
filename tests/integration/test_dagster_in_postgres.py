"""Dagster's storage as a schema of the warehouse's database, made new and taken over from a home's SQLite files."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.storage.tags import PARTITION_NAME_TAG

from pipeline.core.errors import ConfigurationError, WarehouseError
from pipeline.core.settings import Settings, SiteSettings, load_settings
from pipeline.orchestration.instance import prepare_instance
from pipeline.orchestration.switches import open_instance, read_switches, turn
from pipeline.warehouse.connection import connect
from pipeline.warehouse.embedded.binaries import readable_binaries, server_account
from tests.conftest import running_postgres
from tests.unit.test_definitions import settings as home_of

NORTH = SiteSettings(name="north", groups=("g",), schedule="0 1 * * *")
RUNLESS = dg.AssetKey(["cdm", "measurement"])
MADE = dg.AssetKey(["north", "load"])


@dg.asset(key=MADE, partitions_def=dg.DailyPartitionsDefinition("2026-01-01"))
def load() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"rows": 7})


@dg.asset_check(asset=MADE, name="accounting")
def accounting() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False)


def in_postgres(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"database_url": url, "dagster_schema": "dagster"})


@pytest.fixture
def variables(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Dagster's processes read the settings themselves."""
    monkeypatch.setenv("EPIC_OMOP_DATABASE_URL", database_url)
    return database_url


def test_a_home_with_sqlite_files_goes_on_in_the_database(variables: str, tmp_path: Path) -> None:
    here = home_of(tmp_path, NORTH)
    with open_instance(here) as instance:
        turn(instance, NORTH, on=True)
        ran = dg.materialize([load, accounting], instance=instance, partition_key="2026-01-02", run_config={})
        instance.report_runless_asset_event(dg.AssetMaterialization(RUNLESS, metadata={"rows": 3}))
        logs = [event.message for event in instance.all_logs(ran.run_id)]
    files = sorted(path for path in (here.home / "dagster").rglob("*.db"))
    there = in_postgres(here, variables)
    with open_instance(there) as instance:
        storage = instance.get_ref().storage_data
        assert storage is not None
        assert storage.class_name == "WarehouseStorage"
        switches = read_switches(instance, NORTH)
        assert (switches.schedule, switches.sensor) == (True, True)
        (run,) = instance.get_runs()
        assert (run.run_id, run.status, run.tags[PARTITION_NAME_TAG]) == (
            ran.run_id, dg.DagsterRunStatus.SUCCESS, "2026-01-02",
        )  # fmt: skip
        assert [event.message for event in instance.all_logs(run.run_id)] == logs
        assert instance.get_materialized_partitions(MADE) == {"2026-01-02"}
        runless = instance.get_latest_materialization_event(RUNLESS)
        assert runless is not None
        assert runless.asset_materialization is not None
        assert runless.asset_materialization.metadata["rows"].value == 3
        check = dg.AssetCheckKey(MADE, "accounting")
        (found,) = instance.event_log_storage.get_latest_asset_check_execution_by_key([check]).values()
        assert found.status.value == "FAILED"
        # The next rows come after those that were copied.
        dg.materialize([load], instance=instance, partition_key="2026-01-03")
        assert instance.get_materialized_partitions(MADE) == {"2026-01-02", "2026-01-03"}
        turn(instance, NORTH, on=False)
    assert sorted(path for path in (here.home / "dagster").rglob("*.db")) == files, "the old files stay"
    with open_instance(there) as instance:  # and are not taken over a second time
        assert not read_switches(instance, NORTH).schedule
        assert instance.get_runs_count() == 2
    with psycopg.connect(variables) as connection:
        schemas = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'event_logs'").fetchall()
    assert schemas == [("dagster",)]


def test_a_new_home_is_made_by_one_of_several_processes(variables: str, tmp_path: Path) -> None:
    there = in_postgres(home_of(tmp_path, NORTH), variables)
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(lambda _: prepare_instance(there), range(3)))) == 1
    with psycopg.connect(variables) as connection:
        assert connection.execute("SELECT count(*) FROM dagster.alembic_version").fetchone() == (1,)
    assert not list((there.home / "dagster").rglob("*.db"))
    written = yaml.safe_load((there.home / "dagster" / "dagster.yaml").read_text())
    assert written["storage"]["custom"]["config"] == {"schema": "dagster"}
    assert written["concurrency"]["pools"]["granularity"] == "run", "the rest is the project's"


def test_a_schema_of_somebody_else_is_left_alone(variables: str, tmp_path: Path) -> None:
    with psycopg.connect(variables) as connection:
        connection.execute("CREATE SCHEMA dagster CREATE TABLE mine (n int)")
    with pytest.raises(ConfigurationError, match="no storage of Dagster"):
        prepare_instance(in_postgres(home_of(tmp_path, NORTH), variables))


@pytest.fixture
def server_with_passwords(other_database_url: str) -> Iterator[str]:
    """A database of a server that asks for passwords, which the embedded one does not."""
    if urlsplit(other_database_url).hostname:
        yield other_database_url
        return
    with running_postgres(readable_binaries(server_account()).folder) as url:
        yield url


def test_the_password_comes_from_a_file(server_with_passwords: str, tmp_path: Path) -> None:
    """A login whose password has every letter that a URL gives a meaning, also for Dagster's driver."""
    password, file = "p@ss:w/o?r#d%41 é", tmp_path / "password"
    file.write_text(f"{password}\n")
    user = f"deploy_{tmp_path.name[-12:]}".lower().replace("-", "_")
    administrator, parts = server_with_passwords, urlsplit(server_with_passwords)
    database = parts.path.removeprefix("/")
    with psycopg.connect(administrator, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{password}'")
        connection.execute(f'GRANT CREATE ON DATABASE "{database}" TO {user}')
    host = parts.netloc.rpartition("@")[2]
    plain = urlunsplit(parts._replace(netloc=f"{user}@{host}"))
    variables = {
        "EPIC_OMOP_HOME": str(tmp_path / "home"),
        "EPIC_OMOP_DATABASE_URL": plain,
        "EPIC_OMOP_DATABASE_PASSWORD_FILE": str(file),
    }
    try:
        given = load_settings(variables)
        assert urlsplit(given.database_url or "").password == quote(password, safe="")
        assert password not in repr(given)
        assert quote(password, safe="") not in repr(given)
        with psycopg.connect(given.database_url or "") as connection:
            assert connection.execute("SELECT current_user").fetchone() == (user,)
        file.write_text("another\n")
        with pytest.raises(WarehouseError, match="password") as caught:
            connect(load_settings(variables).database_url or "")
        assert "another" not in str(caught.value)
        file.write_text(f"{password}\n")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with open_instance(in_postgres(given, given.database_url or "")) as instance:
                assert instance.get_runs_count() == 0
        home = tmp_path / "home"
        texts = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
        assert not [text for text in texts if b"p@ss" in text or quote(password, safe="").encode() in text]
    finally:
        with psycopg.connect(administrator, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {user} CASCADE")
            connection.execute(f"DROP ROLE {user}")
