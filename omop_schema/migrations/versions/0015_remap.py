"""Where a remap of a site stands, and which sites had an entry in sites.yaml when something of theirs was loaded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "remap",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column(
            "first_export_id",
            sa.BigInteger(),
            nullable=False,
            comment="states of this export and later ones are mapped by the settings of the remap",
        ),
        sa.Column("mark", sa.Text(), nullable=False, comment="of the settings: under others it begins anew"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), comment="NULL: it was interrupted, or runs"),
        sa.PrimaryKeyConstraint("site"),
    )
    op.create_table(
        "configured_site",
        sa.Column("site", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("site"),
    )


def downgrade() -> None:
    op.drop_table("configured_site")
    op.drop_table("remap")
