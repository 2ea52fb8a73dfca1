"""What rules about rows found in a load: numbers by finding, concept and unit, and facts that two resources bring."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0018"
branch_labels = None
depends_on = None

_COLUMNS = {
    "value_checks": "what rules about numbers found: finding, action, concept, unit, count",
    "duplicates": "facts that two resources bring: rule, table, facts, rows",
}


def upgrade() -> None:
    for name, comment in _COLUMNS.items():
        op.add_column(
            "publication",
            sa.Column(
                name,
                postgresql.JSONB(astext_type=sa.Text()),
                server_default=sa.text("'[]'"),
                nullable=False,
                comment=comment,
            ),
        )


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("publication", name)
