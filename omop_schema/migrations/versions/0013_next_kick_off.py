"""The next try of a kick-off that was refused for now; what an export lacks; what was done otherwise than the site says."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "export_job",
        sa.Column(
            "notes",
            JSONB(),
            nullable=False,
            server_default=sa.text("'[]'"),
            comment="sentences: what was done otherwise",
        ),
    )
    op.add_column(
        "export_job",
        sa.Column(
            "failing_since",
            sa.DateTime(timezone=True),
            comment="of the first status call in a row that failed",
        ),
    )
    op.add_column(
        "export_job",
        sa.Column("complete_since", sa.DateTime(timezone=True), comment="when the manifest came"),
    )
    op.create_table(
        "next_kick_off",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("next_try", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="how often it was refused for now"),
        sa.Column("give_up_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("site", "client_id", "group_id"),
    )
    op.create_table(
        "export_gap",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("file_number", sa.Integer(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False, comment="files, outcomes or deleted"),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("expected_count", sa.BigInteger(), nullable=True, comment="`count` of the manifest"),
        sa.Column("lines", sa.BigInteger(), nullable=False, comment="of the file that was taken; 0: none was"),
        sa.CheckConstraint("reason IN ('lost', 'unusable', 'count')", name="export_gap_reason"),
        sa.PrimaryKeyConstraint("export_id", "file_number"),
    )


def downgrade() -> None:
    op.execute("DROP VIEW IF EXISTS file_account")  # views are made anew after every revision
    op.drop_table("export_gap")
    op.drop_table("next_kick_off")
    for column in ("complete_since", "failing_since", "notes"):
        op.drop_column("export_job", column)
