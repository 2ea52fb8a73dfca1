"""The one alert that no database can keep: that it cannot be reached. A small file in the home remembers who was informed.

Two that run at once take turns by the file's lock. One that dies between sending and writing sends again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout

from pipeline.core.alert_settings import AlertSettings
from pipeline.core.errors import EpicOmopError
from pipeline.core.files import make_folder, replace_file
from pipeline.core.settings import Settings
from pipeline.operations.alerts.channels.sending import Channel, send
from pipeline.operations.alerts.kinds import AlertKind, Condition
from pipeline.operations.alerts.messages import Message, Problem, instance_name, problem_of

__all__ = ["report_away", "report_back"]

_log = logging.getLogger(__name__)

Failures = list[tuple[str, EpicOmopError]]
_LOCK_SECONDS = 60.0


def report_away(settings: Settings, alerts: AlertSettings, error: EpicOmopError, now: datetime) -> Failures:
    """Inform each channel that was not informed yet, or not for `remind_after_hours`. Returns what went wrong."""
    with _remembered(settings.home) as informed:
        since = datetime.fromisoformat(informed.setdefault("since", now.isoformat()))
        at: dict[str, str] = informed.setdefault("channels", {})
        remind = timedelta(hours=alerts.remind_after_hours)
        failures: Failures = []
        for channel in alerts.channels:
            last = datetime.fromisoformat(at[channel.name]) if channel.name in at else None
            if last is not None and (not remind or now - last < remind):
                continue
            message = _message(
                settings, alerts, "opened" if last is None else "reminder", now, _problem(error.message, since)
            )
            if _sent(channel, message, alerts, failures):
                at[channel.name] = now.isoformat()
    return failures


def report_back(settings: Settings, alerts: AlertSettings, now: datetime) -> Failures:
    """Tell those who were informed that the warehouse answers again."""
    if not _file(settings.home).exists():
        return []
    failures: Failures = []
    with _remembered(settings.home) as informed:
        if not informed:
            return []
        since = datetime.fromisoformat(informed["since"])
        at: dict[str, str] = informed["channels"]
        for channel in alerts.channels:
            if channel.name in at:
                over = _problem("PostgreSQL did not answer, or could not keep anything.", since, now)
                if _sent(channel, _message(settings, alerts, "resolved", now, over), alerts, failures):
                    del at[channel.name]
        if not {channel.name for channel in alerts.channels} & set(at):
            informed.clear()
    return failures


def _sent(channel: Channel, message: Message, alerts: AlertSettings, failures: Failures) -> bool:
    try:
        send(channel, message, alerts.timeout_seconds)
    except EpicOmopError as error:
        failures.append((channel.name, error))
        return False
    return True


def _problem(what: str, since: datetime, until: datetime | None = None) -> Problem:
    condition = Condition(AlertKind.WAREHOUSE_AWAY, None, what)
    return problem_of(condition.kind, condition.severity, what, condition.command, since, until)


def _message(settings: Settings, alerts: AlertSettings, event: str, now: datetime, problem: Problem) -> Message:
    is_over = event == "resolved"
    return Message(
        event,
        None,
        instance_name(settings, alerts),
        now.isoformat(timespec="seconds"),
        () if is_over else (problem,),
        (problem,) if is_over else (),
    )


def _file(home: Path) -> Path:
    return home / "alerts" / "warehouse-away.json"


@contextmanager
def _remembered(home: Path) -> Iterator[dict[str, Any]]:
    """What the file holds; written back at the end, removed where nothing is left. Where it cannot be written (a full
    disk), the messages leave all the same, and are sent again by the next run."""
    file = _file(home)
    lock = FileLock(f"{file}.lock")
    with suppress(OSError, EpicOmopError, Timeout):
        make_folder(file.parent)
        lock.acquire(timeout=_LOCK_SECONDS)
    try:
        informed: dict[str, Any] = {}
        with suppress(OSError, orjson.JSONDecodeError):
            informed = orjson.loads(file.read_bytes())
        yield informed
        try:
            if informed:
                replace_file(file, orjson.dumps(informed))
            else:
                file.unlink(missing_ok=True)
        except (OSError, EpicOmopError) as error:
            _log.warning("Who was informed could not be written to %s (%s).", file, type(error).__name__)
    finally:
        lock.release()
