"""Lines that are unchanged although their bytes are new, counted by file; what content_hash is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "export_file",
        sa.Column(
            "unchanged_by_content",
            sa.BigInteger(),
            nullable=True,
            comment="of unchanged: other bytes, the same content",
        ),
    )
    op.alter_column(
        "resource_state",
        "content_hash",
        existing_type=sa.BigInteger(),
        comment="xxh3-64 of the canonical content; NULL: none",
        existing_comment="of the canonical content; NULL: not computed yet",
    )


def downgrade() -> None:
    op.alter_column(
        "resource_state",
        "content_hash",
        existing_type=sa.BigInteger(),
        comment="of the canonical content; NULL: not computed yet",
        existing_comment="xxh3-64 of the canonical content; NULL: none",
    )
    op.drop_column("export_file", "unchanged_by_content")
