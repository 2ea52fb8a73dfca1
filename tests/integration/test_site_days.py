"""What Dagster shows of a site without exports: its first day, empty days of a backfill, switches, and `status`."""

from __future__ import annotations

import datetime as dt
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from pipeline.core.clock import ManualClock
from pipeline.core.settings import Settings, SiteSettings, register_site
from pipeline.orchestration.definitions import build_definitions
from pipeline.orchestration.partitions import FIRST_DAY, first_days
from pipeline.orchestration.switches import open_instance
from pipeline.warehouse.next_kick_offs import forget_next, plan_next
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine

QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
ENTRY: dict[str, Any] = {
    "fhir_url": "https://epic.example.org/FHIR/R4",
    "client_id": "x",
    "private_key_env": "NO_KEY",
    "groups": ["g"],
}


@pytest.fixture
def runtime(installed_url: str, tmp_path: Path) -> Runtime:
    """Dagster has partitions up to the real today: our today is two days before it."""
    site = SiteSettings(name="north", **ENTRY)
    settings = Settings(home=tmp_path / "home", database_url=installed_url, sites={"north": site})
    runtime = Runtime(settings, ManualClock(datetime.now(UTC) - timedelta(days=2)))
    with runtime.connect() as connection:
        connection.execute("TRUNCATE export_job")
    return runtime


def _day(runtime: Runtime, days_ago: int = 0) -> str:
    return (runtime.clock.now() - timedelta(days=days_ago)).date().isoformat()


def _export(runtime: Runtime, days_ago: int, state: str = "skipped", site: str = "north", kind: str = "bulk") -> None:
    with runtime.connect() as connection:
        connection.execute(
            "INSERT INTO export_job (site, group_id, kind, state, requested_at) VALUES (%s, 'g', %s, %s, %s)",
            (site, kind, state, runtime.clock.now() - timedelta(days=days_ago)),
        )


def _partitions(runtime: Runtime) -> list[str]:
    definitions = build_definitions(runtime.settings, {"runtime": runtime})
    node = definitions.resolve_asset_graph().get(dg.AssetKey(["north", "landing"]))
    assert node.partitions_def is not None
    return list(node.partitions_def.get_partition_keys())


def test_partitions_begin_with_the_first_export_or_the_day_of_going_live(runtime: Runtime) -> None:
    assert _partitions(runtime)[0] == _day(runtime), "nothing was exported yet: they begin today"
    live = {"north": runtime.settings.sites["north"].model_copy(update={"go_live_date": dt.date(2026, 2, 3)})}
    with_date = Runtime(runtime.settings.model_copy(update={"sites": live}), runtime.clock)
    assert _partitions(with_date)[0] == "2026-02-03"
    later = {"north": live["north"].model_copy(update={"go_live_date": dt.date(2100, 1, 1)})}
    assert first_days(runtime.settings.model_copy(update={"sites": later}), runtime) == {"north": _day(runtime)}
    _export(runtime, 9, site="another")
    _export(runtime, 8, kind="replay")
    _export(runtime, 3)
    assert _partitions(runtime)[0] == _partitions(with_date)[0] == _day(runtime, 3)


def test_days_are_remembered_where_the_warehouse_does_not_answer(runtime: Runtime) -> None:
    gone = runtime.settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    assert first_days(gone) == {"north": FIRST_DAY}
    (runtime.settings.home / "dagster").mkdir(parents=True)
    _export(runtime, 3)
    assert first_days(runtime.settings, runtime) == {"north": _day(runtime, 3)}
    assert first_days(gone) == {"north": _day(runtime, 3)}


def test_a_day_that_was_offered_stays(runtime: Runtime) -> None:
    """The UI has loaded the days from go-live on; a run that begins after the first export must find them."""
    (runtime.settings.home / "dagster").mkdir(parents=True)
    live = {
        "north": runtime.settings.sites["north"].model_copy(
            update={"go_live_date": runtime.clock.now().date() - timedelta(days=9)}
        )
    }
    with_date = Runtime(runtime.settings.model_copy(update={"sites": live}), runtime.clock)
    assert _partitions(with_date)[0] == _day(runtime, 9)
    _export(runtime, 3)
    assert _partitions(with_date)[0] == _partitions(runtime)[0] == _day(runtime, 9)
    _export(runtime, 20)
    assert _partitions(with_date)[0] == _day(runtime, 20)


@pytest.mark.parametrize(
    ("days_ago", "state", "made"), [(1, None, True), (1, "skipped", True), (1, "failed", False), (0, "skipped", False)]
)
def test_a_past_day_without_exports_is_made_as_empty(
    runtime: Runtime, days_ago: int, state: str | None, made: bool
) -> None:
    _export(runtime, 4)
    if state:
        _export(runtime, days_ago, state)
    with dg.DagsterInstance.ephemeral() as instance:
        definitions = build_definitions(runtime.settings, {"runtime": runtime})
        selection = [dg.AssetKey(["north", name]) for name in ("landing", "load")]
        job = definitions.resolve_implicit_job_def_def_for_assets(selection)
        assert job is not None
        if days_ago == 0:  # today an export is asked for, which is not this test's business
            selection = selection[1:]
        result = job.execute_in_process(
            run_config=QUIET, instance=instance, partition_key=_day(runtime, days_ago), asset_selection=selection
        )
    assert result.success
    events = {event.asset_key: event.materialization for event in result.get_asset_materialization_events()}
    assert set(events) == (set(selection) if made else set())
    for event in events.values():
        assert event.metadata["dagster/partition_row_count"].value == 0


def test_status_says_who_kicks_off_again(installed_url: str, tmp_path: Path) -> None:
    register_site(tmp_path, "north", ENTRY)
    terminal = CommandLine(tmp_path, installed_url)
    settings = Settings(home=tmp_path, database_url=installed_url, sites={"north": SiteSettings(name="north", **ENTRY)})
    runtime = Runtime(settings)
    with runtime.connect() as connection:
        plan_next(connection, settings.site("north"), "g", datetime.now(UTC), "busy")
    alone = "kick-off again by hand from"
    try:
        assert alone in _words(terminal), "there has been no Dagster"
        terminal.run("site", "enable", "north")
        assert alone in _words(terminal), "its daemon does not run"
        with open_instance(settings) as instance:
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "x", []))
        shown = _words(terminal)
        assert "kick-off again 20" in shown
        assert alone not in shown
        terminal.run("site", "disable", "north")
        assert alone in _words(terminal)
    finally:
        with runtime.connect() as connection:
            forget_next(connection, settings.site("north"), "g")


def _words(terminal: CommandLine) -> str:
    return " ".join(terminal.run("status", code=None).out.split())


def test_status_announces_what_is_switched_on_alone(installed_url: str, tmp_path: Path) -> None:
    register_site(tmp_path, "north", ENTRY)
    terminal = CommandLine(tmp_path, installed_url)
    assert "schedule off (epic-omop site enable north)" in terminal.run("status", code=None).out
    assert "Dagster's daemon does not run" in terminal.run("site", "enable", "north").out
    shown = terminal.run("status", "--site", "north", code=None).out
    assert "schedule 20" in shown
    assert "schedule off" not in shown
    terminal.run("site", "disable", "north")
    assert "schedule off (epic-omop site enable north)" in terminal.run("status", code=None).out
    register_site(tmp_path, "files", {})
    assert "nothing that runs by itself" in terminal.run("site", "enable", "files", code=2).err
