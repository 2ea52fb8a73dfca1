"""The outbox: conditions become alerts, alerts messages, and a message a delivery for each channel.

Whoever runs the alerts (the timer's command, Dagster's sensor, several at once) does so under one lock of the database and
in one transaction, so that a condition opens one alert and a message is made once. A delivery is locked while it is sent
and marked in the same transaction: two senders never send the same one. A sender that dies between sending and marking
leaves it unmarked, and it is sent again: this errs towards twice, never towards not at all. A message that is sent twice
has the same id.

Functions on a connection whose search_path begins with the `etl` schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

import psycopg
from psycopg.types.json import Jsonb

from pipeline.core.alert_settings import AlertSettings, EmailChannel, LogChannel, WebhookChannel
from pipeline.core.errors import TransientError
from pipeline.operations.alerts.kinds import CONSEQUENCES, AlertKind, Condition
from pipeline.operations.alerts.messages import Message, Problem, cut, problem_of
from pipeline.operations.alerts.rules import Findings

__all__ = [
    "Delivery",
    "Recorded",
    "claim",
    "close_unknown_channels",
    "lock_outbox",
    "mark_delivered",
    "mark_failed",
    "record",
    "waiting",
]

Channel = EmailChannel | WebhookChannel | LogChannel

#: After the first failed attempt, and doubled with each.
_FIRST_WAIT = timedelta(minutes=1)
_LONGEST_WAIT = timedelta(hours=1)
#: Nobody needs a message that could not be sent for so long: reminders say what is still open.
_GIVE_UP_AFTER = timedelta(days=7)

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || ' epic-omop alerts', 0))"
_SEE = """
INSERT INTO alert (key, site, kind, severity, what, command, opened_at, last_seen_at)
VALUES (%(key)s, %(site)s, %(kind)s, %(severity)s, %(what)s, %(command)s, %(now)s, %(now)s)
ON CONFLICT (key) WHERE resolved_at IS NULL
DO UPDATE SET (what, command, last_seen_at) = ROW(excluded.what, excluded.command, excluded.last_seen_at)
RETURNING alert_id, xmax = 0
"""
_ALERTS = "site, kind, severity, what, command, opened_at, resolved_at, alert_id"
# For each site: the message that opened what is open or has just ended, and when something was last said.
_LAST_MESSAGES = """
SELECT coalesce(site, ''), max(message_id) FILTER (WHERE event = 'opened'), max(created_at),
       (array_agg(event ORDER BY message_id DESC))[1]
FROM alert_message GROUP BY 1
"""


@dataclass(frozen=True)
class Recorded:
    """How many alerts are open, of them new; how many have ended; messages that were made."""

    open: int
    opened: int
    resolved: int
    messages: int


@dataclass(frozen=True)
class Delivery:
    """A message on its way to a channel."""

    message: Message
    channel: str
    attempts: int


@dataclass(frozen=True)
class _Alert:
    site: str | None
    kind: str
    severity: str
    what: str
    command: str
    opened_at: datetime
    resolved_at: datetime | None
    alert_id: int

    @property
    def problem(self) -> Problem:
        return problem_of(self.kind, self.severity, self.what, self.command, self.opened_at, self.resolved_at)


@dataclass(frozen=True)
class _LastMessage:
    opened_id: int | None = None
    at: datetime | None = None
    event: str | None = None

    @property
    def is_open(self) -> bool:
        return self.event is not None and self.event != "resolved"


def lock_outbox(connection: psycopg.Connection) -> None:
    """Until the transaction ends nobody else records conditions of this warehouse, and no statement waits for long: the
    alerts never stand in the way of a load. Raises TransientError where somebody else has the lock for a minute."""
    connection.execute("SET LOCAL lock_timeout = '60s'")
    try:
        connection.execute(_LOCK)
    except psycopg.errors.LockNotAvailable:
        connection.rollback()
        raise TransientError("Another run of the alerts is at work.", "Look at it if this stays so.") from None
    connection.execute("SET LOCAL lock_timeout = '5s'")
    connection.execute("SET LOCAL statement_timeout = '30s'")


def record(
    connection: psycopg.Connection, findings: Findings, alerts: AlertSettings, now: datetime, instance: str
) -> Recorded:
    """Open, see again and end alerts, and make the messages about it. Needs `lock_outbox`; does not commit."""
    new = {alert_id for alert_id, is_new in _see(connection, findings.conditions, now) if is_new}
    ended = _end(connection, findings, now)
    last = {site: _LastMessage(*rest) for site, *rest in connection.execute(_LAST_MESSAGES).fetchall()}
    open_alerts = _alerts(connection, "resolved_at IS NULL ORDER BY site NULLS FIRST, severity, alert_id")
    by_site = {site or "": list(found) for site, found in groupby(open_alerts, lambda one: one.site)}
    made = 0
    for name in {*by_site, *(alert.site or "" for alert in ended)}:
        before = last.get(name, _LastMessage())
        here = sorted(by_site.get(name, []), key=lambda alert: alert.alert_id not in new)  # what is new comes first
        event = _event(here, new, before, alerts, now)
        if event is None:
            continue
        since = before.opened_id if event != "opened" else None
        recovered = _recovered(connection, name, since) if event == "resolved" else []
        message = Message(
            event,
            name or None,
            instance,
            now.isoformat(timespec="seconds"),
            tuple(alert.problem for alert in here),
            tuple(alert.problem for alert in recovered),
            thread_id=since or 0,
        )
        _post(connection, message, alerts.channels, now)
        made += 1
    return Recorded(len(open_alerts), len(new), len(ended), made)


def _see(connection: psycopg.Connection, conditions: Iterable[Condition], now: datetime) -> Iterator[tuple[int, bool]]:
    for condition in conditions:
        values = {
            "key": condition.key,
            "site": condition.site,
            "kind": condition.kind,
            "severity": condition.severity,
            "what": cut(condition.what),
            "command": condition.command,
            "now": now,
        }
        row = connection.execute(_SEE, values).fetchone()
        assert row is not None
        yield row[0], row[1]


def _end(connection: psycopg.Connection, findings: Findings, now: datetime) -> list[_Alert]:
    """Alerts whose condition is not there any more; where its rule could not be asked, they stay."""
    keys = [condition.key for condition in findings.conditions]
    return [
        _Alert(*row)
        for row in connection.execute(
            "UPDATE alert SET resolved_at = %s WHERE resolved_at IS NULL AND key <> ALL(%s) AND kind <> ALL(%s)"
            f" RETURNING {_ALERTS}",
            (now, keys, sorted(findings.unknown)),
        ).fetchall()
    ]


def _alerts(connection: psycopg.Connection, condition: str, *values: object) -> list[_Alert]:
    rows = connection.execute(f"SELECT {_ALERTS} FROM alert WHERE {condition}", values or None).fetchall()
    return [_Alert(*row) for row in rows]


def _event(
    here: Sequence[_Alert], new: set[int], before: _LastMessage, alerts: AlertSettings, now: datetime
) -> str | None:
    """What is to be said of a site now; None: nothing."""
    if not here:
        return "resolved" if before.is_open else None
    if not before.is_open:
        return "opened"
    kinds = {AlertKind(alert.kind) for alert in here if alert.kind in set(AlertKind) and alert.alert_id not in new}
    news = [alert for alert in here if alert.alert_id in new and not _follows(alert.kind, kinds)]
    if news:
        return "further"
    remind = timedelta(hours=alerts.remind_after_hours)
    return "reminder" if remind and before.at and now - before.at >= remind else None


def _follows(kind: str, others: set[AlertKind]) -> bool:
    return bool(CONSEQUENCES.get(AlertKind(kind), frozenset()) & others)


def _recovered(connection: psycopg.Connection, site: str, opened_id: int | None) -> list[_Alert]:
    """What has ended since the incident was first spoken of."""
    return _alerts(
        connection,
        "coalesce(site, '') = %s AND resolved_at >= (SELECT created_at FROM alert_message WHERE message_id = %s)"
        " ORDER BY severity, alert_id",
        site,
        opened_id or 0,
    )


def _post(connection: psycopg.Connection, message: Message, channels: Sequence[Channel], now: datetime) -> None:
    """A message, and its delivery to each channel that takes it; what waits there for the same site is said by it, too."""
    row = connection.execute(
        "INSERT INTO alert_message (site, event, created_at, content) VALUES (%s, %s, %s, %s) RETURNING message_id",
        (message.site, message.event, now, Jsonb(message.as_json())),
    ).fetchone()
    assert row is not None
    names = [channel.name for channel in channels if takes(channel, message)]
    connection.execute(
        "UPDATE alert_delivery AS delivery SET state = 'superseded' FROM alert_message AS message"
        " WHERE delivery.message_id = message.message_id AND delivery.state = 'pending'"
        " AND delivery.channel = ANY(%s) AND message.site IS NOT DISTINCT FROM %s",
        (names, message.site),
    )
    for name in names:
        connection.execute(
            "INSERT INTO alert_delivery (message_id, channel, state, next_try) VALUES (%s, %s, 'pending', %s)",
            (row[0], name, now),
        )


def takes(channel: Channel, message: Message) -> bool:
    """Whether the channel is for this message: of its sites, and heavy enough."""
    of_site = not channel.sites or message.site is None or message.site in channel.sites
    return of_site and (channel.severity == "warning" or message.severity == "error")


def close_unknown_channels(connection: psycopg.Connection, channels: Sequence[Channel], now: datetime) -> None:
    """Deliveries to channels that are not set any more, and those that waited for a week, are given up."""
    connection.execute(
        "UPDATE alert_delivery AS delivery SET state = 'given_up' FROM alert_message AS message"
        " WHERE delivery.message_id = message.message_id AND delivery.state = 'pending'"
        " AND (delivery.channel <> ALL(%s) OR message.created_at < %s)",
        ([channel.name for channel in channels], now - _GIVE_UP_AFTER),
    )


def claim(connection: psycopg.Connection, channels: Iterable[str], now: datetime) -> Delivery | None:
    """The oldest delivery that is due to one of these channels, locked until the transaction ends; None: there is none
    that another sender has not locked."""
    # A server that ends idle transactions would let go of the lock while a slow receiver thinks.
    connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    row = connection.execute(
        "SELECT delivery.message_id, delivery.channel, delivery.attempts, message.content FROM alert_delivery AS delivery"
        " JOIN alert_message AS message USING (message_id)"
        " WHERE delivery.state = 'pending' AND delivery.channel = ANY(%s) AND delivery.next_try <= %s"
        " ORDER BY delivery.message_id LIMIT 1 FOR UPDATE OF delivery SKIP LOCKED",
        (list(channels), now),
    ).fetchone()
    if row is None:
        return None
    return Delivery(Message.from_json(row[3], message_id=row[0]), row[1], row[2])


def mark_delivered(connection: psycopg.Connection, delivery: Delivery, now: datetime, note: str | None = None) -> None:
    """`note`: what was not as it should be although it was taken."""
    connection.execute(
        "UPDATE alert_delivery SET state = 'delivered', attempts = attempts + 1, delivered_at = %s, error = %s"
        " WHERE message_id = %s AND channel = %s",
        (now, note, delivery.message.message_id, delivery.channel),
    )


def mark_failed(connection: psycopg.Connection, delivery: Delivery, now: datetime, error: str) -> None:
    """It is tried again: after a minute, two, four … an hour at most."""
    wait = min(_FIRST_WAIT * 2 ** min(delivery.attempts, 10), _LONGEST_WAIT)
    connection.execute(
        "UPDATE alert_delivery SET attempts = attempts + 1, next_try = %s, error = %s"
        " WHERE message_id = %s AND channel = %s",
        (now + wait, cut(error), delivery.message.message_id, delivery.channel),
    )


def waiting(connection: psycopg.Connection, channels: Iterable[str]) -> Mapping[str, tuple[int, str | None]]:
    """Channel → messages that were tried and not taken, and why the last one was not."""
    rows = connection.execute(
        "SELECT channel, count(*), (array_agg(error ORDER BY message_id DESC))[1] FROM alert_delivery"
        " WHERE state = 'pending' AND attempts > 0 AND channel = ANY(%s) GROUP BY 1",
        (list(channels),),
    ).fetchall()
    return {channel: (count, error) for channel, count, error in rows}
