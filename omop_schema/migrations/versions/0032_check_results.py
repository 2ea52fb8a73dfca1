"""Answers of checks, kept: what was asked, when, and how many problems there were.

Revision ID: 0032
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "check_result",
        sa.Column("check_name", sa.Text(), nullable=False),
        sa.Column(
            "cdm_table", sa.Text(), nullable=True, comment="NULL: about accounts of landed files, or a site's past"
        ),
        sa.Column("site", sa.Text(), nullable=True, comment="NULL: problems of which no site is known"),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False, comment="error or warn"),
        sa.Column("problems", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False, comment="counts and concept ids, never a patient's data"),
    )
    op.create_index("check_result_by_check", "check_result", ["check_name", "cdm_table", "site", "checked_at"])
    op.create_index("check_result_by_time", "check_result", ["checked_at"])


def downgrade() -> None:
    op.drop_table("check_result")
