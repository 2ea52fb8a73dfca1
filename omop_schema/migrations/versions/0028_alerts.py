"""Alerts and how they are delivered, failed runs of Dagster, and samples of free disk space: docs/alerts.md.

Empty at first: what is wrong when alerts are first run is reported then.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _alert()
    _messages()
    op.create_table(
        "run_failure",
        sa.Column("run_id", sa.Text(), nullable=False, comment="Dagster's"),
        sa.Column("job_name", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), comment="NULL: of the instance"),
        sa.Column("export_id", sa.BigInteger(), comment="the export that the run was about"),
        sa.Column("partition", sa.Text(), comment="the day that the run was about"),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=False, comment="what went wrong, without patient data"),
        sa.Column("resolved_at", sa.DateTime(timezone=True), comment="when a later run of the same job succeeded"),
        sa.PrimaryKeyConstraint("run_id", name="run_failure_pkey"),
    )
    op.create_index("run_failure_open", "run_failure", ["job_name"], postgresql_where=sa.text("resolved_at IS NULL"))
    op.create_table(
        "disk_sample",
        sa.Column("volume", sa.Text(), nullable=False, comment="what of ours is on the file system, such as home"),
        sa.Column("sampled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("volume", "sampled_at", name="disk_sample_pkey"),
    )


def downgrade() -> None:
    for table in ("disk_sample", "run_failure", "alert_delivery", "alert_message", "alert"):
        op.drop_table(table)


def _alert() -> None:
    op.create_table(
        "alert",
        sa.Column("alert_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("key", sa.Text(), nullable=False, comment="of the condition: the same while it lasts"),
        sa.Column("site", sa.Text(), comment="NULL: of the instance"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False, comment="what happened, without patient data"),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("severity IN ('warning', 'error')", name="alert_severity"),
        sa.PrimaryKeyConstraint("alert_id", name="alert_pkey"),
    )
    op.create_index("alert_one_open", "alert", ["key"], unique=True, postgresql_where=sa.text("resolved_at IS NULL"))
    op.create_index("alert_by_time", "alert", ["opened_at"])


def _messages() -> None:
    op.create_table(
        "alert_message",
        sa.Column("message_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("site", sa.Text(), comment="NULL: of the instance"),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "content",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="as it is sent, without patient data and secrets",
        ),
        sa.CheckConstraint("event IN ('opened', 'further', 'reminder', 'resolved')", name="alert_message_event"),
        sa.PrimaryKeyConstraint("message_id", name="alert_message_pkey"),
    )
    op.create_index("alert_message_by_site", "alert_message", ["site", "message_id"])
    op.create_table(
        "alert_delivery",
        sa.Column("message_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("channel", sa.Text(), nullable=False, comment="its name in operations.yaml"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("next_try", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True)),
        sa.Column("error", sa.Text(), comment="of the last attempt"),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'superseded', 'given_up')", name="alert_delivery_state"),
        sa.PrimaryKeyConstraint("message_id", "channel", name="alert_delivery_pkey"),
    )
    op.create_index(
        "alert_delivery_pending",
        "alert_delivery",
        ["channel", "message_id"],
        postgresql_where=sa.text("state = 'pending'"),
    )
