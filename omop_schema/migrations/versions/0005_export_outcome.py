"""What the site says of an export: the issues of its error and outcome files, counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "export_outcome",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("weight", sa.Text(), nullable=False, comment="informational, resource or fatal"),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False, comment="FHIR issue type; `unreadable` for a broken line"),
        sa.Column("site_code", sa.Text(), nullable=False, comment="Epic's own code such as 59108, or empty"),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("weight IN ('informational', 'resource', 'fatal')", name="export_outcome_weight"),
        sa.PrimaryKeyConstraint("export_id", "severity", "code", "site_code"),
    )


def downgrade() -> None:
    op.drop_table("export_outcome")
