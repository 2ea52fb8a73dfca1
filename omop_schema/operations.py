"""Tables of the `etl` schema that operations need: alerts and how they are delivered, failed runs, free disk space.

What is loaded does not depend on them: all of them may be emptied. `omop_schema.etl` puts them beside its own.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Index, Integer, MetaData, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

__all__ = ["DELIVERY_STATES", "MESSAGE_EVENTS", "alert_tables"]

#: What a message is about: a first problem of a site, a further one, one that is still there, and the end of all.
MESSAGE_EVENTS = ("opened", "further", "reminder", "resolved")
#: superseded: a later message of the same site says it as well; given_up: nobody took it for a week, or its channel is gone.
DELIVERY_STATES = ("pending", "delivered", "superseded", "given_up")


def alert_tables(metadata: MetaData) -> None:
    """alert, alert_message, alert_delivery: the outbox; run_failure and disk_sample: what its rules read beside `etl`."""
    _alert(metadata)
    _messages(metadata)
    Table(
        "run_failure",
        metadata,
        Column("run_id", Text, primary_key=True, comment="Dagster's"),
        Column("job_name", Text, nullable=False),
        Column("site", Text, comment="NULL: of the instance"),
        Column("export_id", BigInteger, comment="the export that the run was about"),
        Column("partition", Text, comment="the day that the run was about"),
        Column("failed_at", DateTime(timezone=True), nullable=False),
        Column("error", Text, nullable=False, comment="what went wrong, without patient data"),
        Column("resolved_at", DateTime(timezone=True), comment="when a later run of the same job succeeded"),
        Index("run_failure_open", "job_name", postgresql_where=text("resolved_at IS NULL")),
    )
    Table(
        "disk_sample",
        metadata,
        Column("volume", Text, primary_key=True, comment="what of ours is on the file system, such as home"),
        Column("sampled_at", DateTime(timezone=True), primary_key=True),
        Column("total_bytes", BigInteger, nullable=False),
        Column("free_bytes", BigInteger, nullable=False),
    )


def _alert(metadata: MetaData) -> None:
    Table(
        "alert",
        metadata,
        Column("alert_id", BigInteger, primary_key=True, autoincrement=True),
        Column("key", Text, nullable=False, comment="of the condition: the same while it lasts"),
        Column("site", Text, comment="NULL: of the instance"),
        Column("kind", Text, nullable=False),
        Column("severity", Text, nullable=False),
        Column("what", Text, nullable=False, comment="what happened, without patient data"),
        Column("command", Text, nullable=False),
        Column("opened_at", DateTime(timezone=True), nullable=False),
        Column("last_seen_at", DateTime(timezone=True), nullable=False),
        Column("resolved_at", DateTime(timezone=True)),
        CheckConstraint("severity IN ('warning', 'error')", name="alert_severity"),
        Index("alert_one_open", "key", unique=True, postgresql_where=text("resolved_at IS NULL")),
        Index("alert_by_time", "opened_at"),
    )


def _messages(metadata: MetaData) -> None:
    Table(
        "alert_message",
        metadata,
        Column("message_id", BigInteger, primary_key=True, autoincrement=True),
        Column("site", Text, comment="NULL: of the instance"),
        Column("event", Text, nullable=False),
        Column("created_at", DateTime(timezone=True), nullable=False),
        Column("content", JSONB, nullable=False, comment="as it is sent, without patient data and secrets"),
        CheckConstraint(f"event IN {MESSAGE_EVENTS!r}", name="alert_message_event"),
        Index("alert_message_by_site", "site", "message_id"),
    )
    Table(
        "alert_delivery",
        metadata,
        Column("message_id", BigInteger, primary_key=True, autoincrement=False),
        Column("channel", Text, primary_key=True, comment="its name in operations.yaml"),
        Column("state", Text, nullable=False),
        Column("attempts", Integer, nullable=False, server_default=text("0")),
        Column("next_try", DateTime(timezone=True), nullable=False),
        Column("delivered_at", DateTime(timezone=True)),
        Column("error", Text, comment="of the last attempt"),
        CheckConstraint(f"state IN {DELIVERY_STATES!r}", name="alert_delivery_state"),
        Index("alert_delivery_pending", "channel", "message_id", postgresql_where=text("state = 'pending'")),
    )
