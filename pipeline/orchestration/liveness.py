"""Whether Dagster's daemon lives: what `dagster-daemon liveness-check` asks, in this home. Starts no code server."""

from __future__ import annotations

from dagster._daemon.controller import all_daemons_live

from pipeline.core.findings import Finding
from pipeline.core.settings import Settings
from pipeline.orchestration.switches import open_instance

__all__ = ["daemon_finding"]

#: The daemon reports every 30 s; Dagster itself calls it dead after 300 s.
_TOLERANCE_SECONDS = 300.0


def daemon_finding(settings: Settings) -> Finding:
    """By the heartbeats of all that this instance needs: schedules, sensors, the queue of runs."""
    with open_instance(settings) as instance:
        alive = all_daemons_live(instance, heartbeat_tolerance_seconds=_TOLERANCE_SECONDS)
    if alive:
        return Finding("daemon", "ok", "Dagster's daemon has reported in the last 5 minutes.")
    advice = "Start it: epic-omop ui, or docker compose up -d."
    return Finding("daemon", "failed", "Dagster's daemon has not reported in the last 5 minutes.", advice)
