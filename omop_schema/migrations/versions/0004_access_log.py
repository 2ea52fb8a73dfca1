"""Access log (append-only) and the requests of each hour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_REFUSE = """
CREATE FUNCTION refuse_change_of_access_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'access_log takes new rows only' USING ERRCODE = 'insufficient_privilege';
END $$
"""


def upgrade() -> None:
    op.create_table(
        "access_log",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=True, comment="as registered with the site"),
        sa.Column("run_id", sa.Text(), nullable=False, comment="of Dagster, or of the process"),
        sa.Column("os_user", sa.Text(), nullable=False),
        sa.Column("workflow", sa.Text(), nullable=False, comment="command or job"),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=True),
        sa.Column("url", sa.Text(), nullable=True, comment="without values of the query and ids of resources"),
        sa.Column("resource_type", sa.Text(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("resources", sa.BigInteger(), nullable=True, comment="lines of a file, entries of a page"),
        sa.Column("bytes", sa.BigInteger(), nullable=True, comment="of the body, decompressed"),
        sa.Column("detail", sa.Text(), nullable=True, comment="an error code; never the words of a server"),
        sa.CheckConstraint("outcome IN ('ok', 'refused', 'failed', 'blocked')", name="access_log_outcome"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("access_log_by_site", "access_log", ["site", "at"], unique=False)
    op.execute(_REFUSE)
    for name, event in (("row", "UPDATE OR DELETE"), ("all", "TRUNCATE")):
        each = "ROW" if name == "row" else "STATEMENT"
        op.execute(
            f"CREATE TRIGGER access_log_append_only_{name} BEFORE {event} ON access_log"
            f" FOR EACH {each} EXECUTE FUNCTION refuse_change_of_access_log()"
        )
    op.create_table(
        "request_count",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False, comment="its beginning"),
        sa.Column("requests", sa.BigInteger(), nullable=False, comment="sent, or set apart for a process that runs"),
        sa.PrimaryKeyConstraint("site", "hour"),
    )


def downgrade() -> None:
    op.drop_table("request_count")
    op.drop_table("access_log")
    op.execute("DROP FUNCTION refuse_change_of_access_log()")
