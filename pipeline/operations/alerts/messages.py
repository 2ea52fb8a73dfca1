"""Messages about alerts: one for each site, as data that the outbox keeps, and as text for people.

A message holds what rules say, which is without patient data, and never a secret: channels put theirs in when they send.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.core.alert_settings import AlertSettings
from pipeline.core.cdm_source import CdmSource
from pipeline.core.settings import Settings
from pipeline.core.visible_text import shown
from pipeline.operations.alerts.kinds import KINDS, AlertKind

__all__ = ["Message", "Problem", "cut", "instance_name", "problem_of", "problem_text", "recovery_text"]

#: The longest sentence of a rule: errors of servers are cut off.
_LONGEST = 600
_WORDS = {
    "opened": "problem",
    "further": "further problem",
    "reminder": "still open",
    "resolved": "recovered",
    "test": "test",
}


@dataclass(frozen=True)
class Problem:
    """One alert in a message; times are ISO 8601 in UTC."""

    kind: str
    severity: str
    title: str
    what: str
    meaning: str
    to_do: str
    command: str
    opened_at: str
    resolved_at: str | None = None


@dataclass(frozen=True)
class Message:
    """What is sent. `event`: opened, further, reminder, resolved, test. `site`: None for the instance as a whole."""

    event: str
    site: str | None
    instance: str
    at: str
    problems: tuple[Problem, ...] = ()
    recovered: tuple[Problem, ...] = ()
    #: Of the outbox: a message that is sent twice has the same.
    message_id: int = 0
    #: Of the message that opened the incident, so that mail programs put them together.
    thread_id: int = 0
    note: str = field(default="")

    @property
    def severity(self) -> str:
        return "error" if any(one.severity == "error" for one in (*self.problems, *self.recovered)) else "warning"

    @property
    def subject(self) -> str:
        """One line: whose it is, and what."""
        about = self.site or "the warehouse"
        listed = self.problems or self.recovered
        titles = list(dict.fromkeys(one.title for one in listed))
        what = "; ".join(titles[:3]) + (f" and {len(titles) - 3} more" if len(titles) > 3 else "")
        return shown(f"[{self.instance}] {about}: {_WORDS[self.event]}{f': {what}' if what else ''}")

    @property
    def text(self) -> str:
        """For people: every problem with what happened, what it means, what to do, and the command."""
        parts = [self.subject, *([self.note] if self.note else [])]
        parts += [problem_text(one) for one in self.problems]
        parts += [recovery_text(one) for one in self.recovered]
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"subject": self.subject, "severity": self.severity}

    @classmethod
    def from_json(cls, content: dict[str, Any], *, message_id: int) -> Message:
        values = {name: value for name, value in content.items() if name in cls.__dataclass_fields__}
        for name in ("problems", "recovered"):
            values[name] = tuple(Problem(**one) for one in values[name])
        return cls(**{**values, "message_id": message_id, "thread_id": values["thread_id"] or message_id})


def problem_text(one: Problem) -> str:
    return (
        f"{one.title} ({one.severity}, since {_time(one.opened_at)})\n"
        f"What happened: {one.what}\nWhat it means: {one.meaning}\nWhat to do: {one.to_do}\nCommand: {one.command}"
    )


def recovery_text(one: Problem) -> str:
    until = f" until {_time(one.resolved_at)}" if one.resolved_at else ""
    return f"Over: {one.title} (from {_time(one.opened_at)}{until})\nWhat happened: {one.what}"


def problem_of(
    kind: str, severity: str, what: str, command: str, opened_at: datetime, resolved_at: datetime | None = None
) -> Problem:
    """One alert; of a kind that this version does not know, its name alone."""
    text = KINDS.get(AlertKind(kind)) if kind in set(AlertKind) else None
    return Problem(
        kind=kind,
        severity=severity,
        title=text.title if text else kind,
        what=cut(what),
        meaning=text.meaning if text else "",
        to_do=text.to_do if text else "",
        command=command,
        opened_at=opened_at.astimezone(UTC).isoformat(timespec="seconds"),
        resolved_at=resolved_at.astimezone(UTC).isoformat(timespec="seconds") if resolved_at else None,
    )


def cut(text: str, longest: int = _LONGEST) -> str:
    """One line without control characters, not longer than that."""
    line = shown(" ".join(text.split()))
    return line if len(line) <= longest else line[: longest - 1] + "…"


def instance_name(settings: Settings, alerts: AlertSettings) -> str:
    """By which a person tells this warehouse from another."""
    own, ours = settings.cdm_source.cdm_source_abbreviation, CdmSource().cdm_source_abbreviation
    named = own if own != ours else f"{ours} on {platform.node() or 'this machine'}"
    return alerts.instance or named


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
