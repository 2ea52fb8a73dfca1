"""When the files of an old export were removed from landing, but for the lines that are still needed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "export_job",
        sa.Column("pruned_at", sa.DateTime(timezone=True), comment="landing holds at most the lines that are needed"),
    )


def downgrade() -> None:
    op.drop_column("export_job", "pruned_at")
