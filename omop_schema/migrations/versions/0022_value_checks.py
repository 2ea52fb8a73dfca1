"""What rules about numbers found in a load: counts by finding, concept and unit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "publication",
        sa.Column(
            "value_checks",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'"),
            nullable=False,
            comment="what rules about numbers found: finding, action, concept, unit, count",
        ),
    )


def downgrade() -> None:
    op.drop_column("publication", "value_checks")
