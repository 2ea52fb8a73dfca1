"""A site's schedule and sensor: on or off, as Dagster's instance keeps it. `epic-omop site enable` and the UI turn the
same switches; `epic-omop status` reads them. No code server is started for that, and no definition is loaded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from pipeline.core.settings import Settings, SiteSettings
from pipeline.orchestration.instance import LOCATION, prepare_instance

__all__ = ["LOCATION", "SiteSwitches", "open_instance", "read_switches", "schedule_name", "sensor_name", "turn"]

_REPOSITORY = "__repository__"
#: The daemon reports every 30 s; Dagster itself calls it dead after 300 s.
_HEARTBEAT_SECONDS = 300


@dataclass(frozen=True)
class SiteSwitches:
    schedule: bool
    sensor: bool
    #: Whether Dagster's daemon runs, without which neither does anything.
    daemon: bool


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of this home, made if it is not there yet."""
    folder = prepare_instance(settings)
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        yield instance


def read_switches(instance: dg.DagsterInstance, site: SiteSettings) -> SiteSwitches:
    known = {
        (state.selector.location_name, state.instigator_name): state.status for state in instance.all_instigator_state()
    }
    on = {
        name: known.get((LOCATION, name), InstigatorStatus.DECLARED_IN_CODE) == InstigatorStatus.RUNNING
        or (by_default and known.get((LOCATION, name)) != InstigatorStatus.STOPPED)
        for name, by_default in ((schedule_name(site), False), (sensor_name(site), site.test_mode))
    }
    beats = instance.get_daemon_heartbeats().values()
    alive = any(beat.timestamp > time.time() - _HEARTBEAT_SECONDS for beat in beats)
    return SiteSwitches(on[schedule_name(site)], on[sensor_name(site)], alive)


def turn(instance: dg.DagsterInstance, site: SiteSettings, *, on: bool) -> None:
    """Start or stop the site's schedule and, where it has groups, its sensor; repeating it changes nothing."""
    now = time.time()
    schedule = ScheduleInstigatorData(site.schedule, start_timestamp=now if on else None)
    _keep(instance, schedule_name(site), InstigatorType.SCHEDULE, schedule, on=on)
    if site.groups:
        _keep(instance, sensor_name(site), InstigatorType.SENSOR, SensorInstigatorData(), on=on)


def schedule_name(site: SiteSettings) -> str:
    return f"{site.name}__nightly"


def sensor_name(site: SiteSettings) -> str:
    return f"{site.name}__exports"


def _keep(
    instance: dg.DagsterInstance,
    name: str,
    kind: InstigatorType,
    data: ScheduleInstigatorData | SensorInstigatorData,
    *,
    on: bool,
) -> None:
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name=LOCATION)
    location = ManagedGrpcPythonEnvCodeLocationOrigin(loadable_target_origin=target, location_name=LOCATION)
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, _REPOSITORY), name)
    status = InstigatorStatus.RUNNING if on else InstigatorStatus.STOPPED
    state = InstigatorState(origin, kind, status, data)
    stored = instance.get_instigator_state(origin.get_id(), state.selector_id)
    if stored is None:
        instance.add_instigator_state(state)
    elif stored.status != status:  # a sensor's cursor and last ticks stay
        is_schedule = kind == InstigatorType.SCHEDULE
        changed = stored.with_data(data) if is_schedule or stored.instigator_data is None else stored
        instance.update_instigator_state(changed.with_status(status))
