"""References by identifier, and roles that stand for their practitioners."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "reference",
        sa.Column(
            "is_by_identifier",
            sa.Boolean(),
            nullable=False,
            server_default=sa.text("false"),
            comment="the target is the keyed hash of an identifier, not a resource",
        ),
    )
    op.create_index(
        "reference_value_role", "reference_value", ["value"], postgresql_where=sa.text("name = 'role_practitioner'")
    )


def downgrade() -> None:
    op.drop_index("reference_value_role", "reference_value")
    op.drop_column("reference", "is_by_identifier")
