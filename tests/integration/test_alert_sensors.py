"""Dagster's sensors of the alerts, over real runs in its storage: a run that fails is said, and its success ends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from pipeline.core.clock import SystemClock
from pipeline.core.settings import Settings, SiteSettings
from pipeline.orchestration.alert_sensors import read_dagster_state
from pipeline.orchestration.definitions import build_definitions
from pipeline.orchestration.switches import open_instance, turn
from pipeline.warehouse.runtime import Runtime
from tests.alert_receivers import Webhook, closed_port, running_webhook
from tests.databases import Prepared

QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
NORTH = SiteSettings(
    name="north",
    fhir_url="https://epic.example/FHIR",
    client_id="c",
    private_key_env="NO_SUCH_KEY",
    groups=("g1",),
    resource_types=("Patient",),
)


@dataclass
class World:
    runtime: Runtime
    instance: dg.DagsterInstance
    webhook: Webhook

    def __post_init__(self) -> None:
        self.definitions = build_definitions(self.runtime.settings, {"runtime": self.runtime})
        self.cursors: dict[str, str | None] = {}

    def tick(self, name: str, runtime: Runtime | None = None) -> Any:
        """One evaluation, as the daemon makes it, from the cursor that the last one left."""
        context = dg.build_sensor_context(
            self.instance,
            cursor=self.cursors.get(name),
            repository_def=self.definitions.get_repository_def(),
            resources={"runtime": runtime or self.runtime},
            sensor_name=name,
        )
        result = self.definitions.resolve_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = result.cursor
        return result

    def kick_off(self) -> bool:
        job = self.definitions.resolve_job_def("north__kick_off")
        return job.execute_in_process(run_config=QUIET, instance=self.instance, raise_on_error=False).success

    def failures(self) -> list[tuple[Any, ...]]:
        with self.runtime.connect() as connection:
            return connection.execute("SELECT job_name, site, error, resolved_at IS NULL FROM run_failure").fetchall()

    def let_it_pass(self) -> None:
        """The group is in its cool-down: a kick-off has nothing to do, and succeeds."""
        until = SystemClock().now() + timedelta(hours=5)
        with self.runtime.connect() as connection:
            connection.execute("INSERT INTO cool_down VALUES ('north', 'c', 'g1', %s, 'too soon')", (until,))


@pytest.fixture
def world(demo_warehouse: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    home = tmp_path / "home"
    with demo_warehouse.copy(home) as url, running_webhook() as webhook, dg.DagsterInstance.ephemeral() as instance:
        monkeypatch.setenv("HOOK", webhook.url())
        channels = [{"kind": "webhook", "url_env": "HOOK", "format": "json"}]
        (home / "operations.yaml").write_text(yaml.safe_dump({"alerts": {"channels": channels}}))
        settings = Settings(home=home, database_url=url, sites={"north": NORTH})
        yield World(Runtime(settings), instance, webhook)


def test_a_failed_run_is_said_and_the_next_one_that_succeeds_ends_it(world: World) -> None:
    assert world.kick_off() is False  # before the sensors were on
    for name in ("run_failures", "run_successes"):
        world.tick(name)
    assert world.failures() == []
    assert world.kick_off() is False
    world.tick("run_failures")
    ((job, site, error, is_open),) = world.failures()
    assert (job, site, is_open) == ("north__kick_off", "north", True)
    assert "NO_SUCH_KEY" in error
    assert "1 alerts are open; 1 messages sent" in world.tick("alerts").skip_message
    assert len(world.failures()) == 2  # the one before is found as well
    (problem,) = world.webhook.seen[0][2]["problems"]
    assert (problem["kind"], problem["command"]) == ("run_failed", "epic-omop run --site north")
    world.let_it_pass()
    assert world.kick_off() is True
    world.tick("run_successes")
    assert [row[3] for row in world.failures()] == [False, False]
    world.tick("alerts")
    assert [body["event"] for _, _, body in world.webhook.seen] == ["opened", "resolved"]
    with open_instance(world.runtime.settings) as instance:
        state = read_dagster_state(instance, world.runtime.settings)
        assert (state.daemon, state.stopped) == (False, {"north"})
        turn(instance, NORTH, on=True)
        assert read_dagster_state(instance, world.runtime.settings).stopped == frozenset()


def test_what_happens_while_the_database_is_away_is_found_later(world: World) -> None:
    for name in ("run_failures", "run_successes"):
        world.tick(name)
    away = Runtime(
        world.runtime.settings.model_copy(update={"database_url": f"postgresql://x@127.0.0.1:{closed_port()}/x"})
    )
    assert world.kick_off() is False
    world.tick("run_failures", away)
    assert "cannot be used" in world.tick("alerts", away).skip_message
    assert world.failures() == []
    world.tick("alerts")
    assert [row[3] for row in world.failures()] == [True]
    world.let_it_pass()
    assert world.kick_off() is True
    world.tick("run_successes", away)
    world.tick("alerts")
    assert [row[3] for row in world.failures()] == [False]
    said = [(body["event"], body["site"]) for _, _, body in world.webhook.seen]
    assert said == [("opened", None), ("resolved", None), ("opened", "north"), ("resolved", "north")]


def test_a_receiver_that_refuses_fails_no_tick(world: World) -> None:
    world.kick_off()
    world.webhook.status = 404
    result = world.tick("alerts")
    assert "not delivered: webhook" in result.skip_message
    (world.runtime.settings.home / "operations.yaml").write_text("alerts: {chanels: []}\n")
    assert "see the log" in world.tick("alerts").skip_message
