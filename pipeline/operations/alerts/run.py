"""One run of the alerts: ask the rules, keep what they found in the outbox, send what is due, and beat the heart.

The timer's command and Dagster's sensor both do this, at once if it happens. Nothing here changes a row of the warehouse,
and nothing that fails here keeps a load from anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg

from pipeline.core.alert_settings import AlertSettings
from pipeline.core.errors import EpicOmopError, WarehouseError
from pipeline.core.operations_settings import load_operations
from pipeline.core.settings import Settings
from pipeline.core.settings_file import nearest
from pipeline.operations.alerts.channels.sending import Channel, send
from pipeline.operations.alerts.channels.webhook import send_heartbeat
from pipeline.operations.alerts.circumstances import Circumstances, ObserveDagster, nothing_known
from pipeline.operations.alerts.disk_rules import sample_disks
from pipeline.operations.alerts.messages import Message, instance_name
from pipeline.operations.alerts.outbox import (
    Recorded,
    claim,
    close_unknown_channels,
    lock_outbox,
    mark_delivered,
    mark_failed,
    record,
    waiting,
)
from pipeline.operations.alerts.rules import find_conditions
from pipeline.operations.alerts.warehouse_away import report_away, report_back
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors

__all__ = ["HEARTBEAT", "AlertsReport", "run_alerts", "try_channels", "unknown_sites"]

#: What the heartbeat is called among the channels of a report.
HEARTBEAT = "heartbeat"


@dataclass
class AlertsReport:
    """What a run did. `away`: why the warehouse could not be reached, in which case nothing is recorded."""

    recorded: Recorded | None = None
    #: (channel, subject) of what was sent
    sent: list[tuple[str, str]] = field(default_factory=list)
    #: (channel, what was not as it should be although it was taken)
    notes: list[tuple[str, str]] = field(default_factory=list)
    failures: list[tuple[str, EpicOmopError]] = field(default_factory=list)
    #: channel → messages that wait for another try, and why
    waiting: Mapping[str, tuple[int, str | None]] = field(default_factory=dict)
    heartbeat: bool | None = None
    away: EpicOmopError | None = None

    @property
    def is_well(self) -> bool:
        return not (self.failures or self.waiting or self.away)


def run_alerts(
    runtime: Runtime, *, dagster: ObserveDagster = nothing_known, most_seconds: float = 240.0
) -> AlertsReport:
    """One run; sending ends after `most_seconds`, and what is left is sent by the next one.

    The heart beats only where every rule was asked and every message has left: whoever watches it is informed instead.
    Raises ConfigurationError (operations.yaml), and WarehouseError where the schemas are of an older version.
    """
    alerts = load_operations(runtime.settings).alerts
    until = time.monotonic() + most_seconds
    report = AlertsReport()
    try:
        with server_errors(), runtime.connect() as connection:
            now = runtime.clock.now()
            report.recorded, asked_all = _record(connection, runtime, alerts, dagster)
            report.failures += report_back(runtime.settings, alerts, now)
            _deliver(connection, runtime, alerts, report, until)
            report.waiting = waiting(connection, [channel.name for channel in alerts.channels])
    except WarehouseError as error:
        if _lacks_outbox(runtime):
            raise
        report.away = error
        report.failures += report_away(runtime.settings, alerts, error, runtime.clock.now())
        return report
    if alerts.heartbeat is not None and asked_all and report.is_well:
        try:
            send_heartbeat(alerts.heartbeat, alerts.timeout_seconds)
            report.heartbeat = True
        except EpicOmopError as error:
            report.heartbeat = False
            report.failures.append((HEARTBEAT, error))
    return report


def try_channels(runtime: Runtime, name: str | None = None) -> list[tuple[str, str | None, EpicOmopError | None]]:
    """A message of the event `test` to each channel, or to that of the name, and the heartbeat; without the outbox, and so
    without the warehouse. Returns (channel, note, what went wrong)."""
    alerts = load_operations(runtime.settings).alerts
    results: list[tuple[str, str | None, EpicOmopError | None]] = []
    message = Message(
        "test",
        None,
        instance_name(runtime.settings, alerts),
        runtime.clock.now().isoformat(timespec="seconds"),
        note="This is a test of the alerts (epic-omop alerts test). Nothing is wrong, and nothing needs to be done.",
    )
    for channel in alerts.channels:
        if name in (None, channel.name):
            try:
                results.append((channel.name, send(channel, message, alerts.timeout_seconds), None))
            except EpicOmopError as error:
                results.append((channel.name, None, error))
    if alerts.heartbeat is not None and name in (None, HEARTBEAT):
        try:
            send_heartbeat(alerts.heartbeat, alerts.timeout_seconds)
            results.append((HEARTBEAT, None, None))
        except EpicOmopError as error:
            results.append((HEARTBEAT, None, error))
    return results


def unknown_sites(settings: Settings, alerts: AlertSettings) -> list[str]:
    """A sentence for each site that operations.yaml names and sites.yaml does not: a slip, or a site that is gone. It is no
    error, for the other alerts must leave all the same."""
    named = {*alerts.sites, *(site for channel in alerts.channels for site in channel.sites)}
    return [
        f"operations.yaml names site {name!r}, which sites.yaml does not.{nearest(name, settings.sites)}"
        for name in sorted(named - set(settings.sites))
    ]


def _record(
    connection: psycopg.Connection, runtime: Runtime, alerts: AlertSettings, dagster: ObserveDagster
) -> tuple[Recorded, bool]:
    """What was found is kept in one transaction; and whether every rule could be asked."""
    now = runtime.clock.now()
    lock_outbox(connection)
    sample_disks(connection, runtime.settings, now)
    findings = find_conditions(connection, Circumstances(runtime.settings, alerts, now, dagster))
    recorded = record(connection, findings, alerts, now, instance_name(runtime.settings, alerts))
    close_unknown_channels(connection, alerts.channels, now)
    connection.commit()
    return recorded, not findings.unknown


def _deliver(
    connection: psycopg.Connection, runtime: Runtime, alerts: AlertSettings, report: AlertsReport, until: float
) -> None:
    """Channel by channel, oldest first; one that fails is left alone until the next run."""
    for channel in alerts.channels:
        while time.monotonic() < until and _deliver_one(connection, runtime, channel, alerts, report):
            pass


def _deliver_one(
    connection: psycopg.Connection, runtime: Runtime, channel: Channel, alerts: AlertSettings, report: AlertsReport
) -> bool:
    """Send what is due next to the channel; False: there is nothing, or it was not taken."""
    delivery = claim(connection, [channel.name], runtime.clock.now())
    if delivery is None:
        connection.rollback()
        return False
    try:
        note = send(channel, delivery.message, alerts.timeout_seconds)
    except EpicOmopError as error:
        mark_failed(connection, delivery, runtime.clock.now(), error.message)
        connection.commit()
        report.failures.append((channel.name, error))
        return False
    mark_delivered(connection, delivery, runtime.clock.now(), note)
    connection.commit()
    report.sent.append((channel.name, delivery.message.subject))
    if note:
        report.notes.append((channel.name, note))
    return True


def _lacks_outbox(runtime: Runtime) -> bool:
    """Whether the server answers, and its schemas are of an older version or not there."""
    try:
        with runtime.connect() as connection:
            return connection.execute("SELECT to_regclass('alert_delivery') IS NULL").fetchone() == (True,)
    except WarehouseError:
        return False
