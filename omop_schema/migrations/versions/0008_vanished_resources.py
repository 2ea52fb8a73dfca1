"""Which resources a group's exports no longer hold, and exports that asked for changes only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "export_job",
        sa.Column(
            "since",
            sa.DateTime(timezone=True),
            comment="`_since` of the kick-off; NULL: everything was asked for",
        ),
    )
    op.add_column(
        "publication",
        sa.Column(
            "vanished",
            JSONB(),
            nullable=False,
            server_default=sa.text("'{}'"),
            comment="what came of it → type → count",
        ),
    )
    op.create_table(
        "group_export",
        sa.Column("export_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("members", sa.BigInteger(), nullable=False, comment="resources that the export held"),
        sa.Column("complete_types", JSONB(), nullable=False, comment="of which it held all that the group has"),
        sa.Column(
            "earlier_is_lost",
            sa.Boolean(),
            nullable=False,
            comment="what the group held before is not known any more",
        ),
        sa.PrimaryKeyConstraint("export_id"),
    )
    op.create_index("group_export_by_group", "group_export", ["site", "group_id"])
    op.create_table(
        "absent_resource",
        sa.Column("surrogate_id", sa.BigInteger(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("last_export_id", sa.BigInteger(), nullable=False, comment="the group's last export that held it"),
        sa.PrimaryKeyConstraint("surrogate_id", "group_id", name="absent_resource_pkey"),
    )
    op.create_index("absent_resource_by_last", "absent_resource", ["last_export_id"])
    op.create_index(
        "resource_state_returned",
        "resource_state",
        ["surrogate_id"],
        postgresql_where=sa.text("reason = 'returned'"),
    )


def downgrade() -> None:
    op.drop_index("resource_state_returned")
    op.drop_table("absent_resource")
    op.drop_table("group_export")
    op.drop_column("publication", "vanished")
    op.drop_column("export_job", "since")
