"""How long dead letters stay open: docs/dead-letters.md.

`open_since` of letters of before is when their own line was rejected first. Letters that a repair closes, and those that
retention removes, are counted from now on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "dead_letter",
        sa.Column(
            "open_since",
            sa.DateTime(timezone=True),
            comment="when a line of this resource was first rejected; older than first_seen where the line changed since",
        ),
    )
    op.execute("UPDATE dead_letter SET open_since = first_seen")
    op.alter_column("dead_letter", "open_since", nullable=False)
    op.add_column(
        "dead_letter",
        sa.Column(
            "is_repaired",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="closed by a line that a person repaired",
        ),
    )
    op.create_table(
        "dead_letter_repair",
        sa.Column(
            "export_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the replay that brings it"
        ),
        sa.Column("letter_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("raw_hash_high", sa.BigInteger(), nullable=False, comment="xxh3-128 of the repaired line"),
        sa.Column("raw_hash_low", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("export_id", "letter_id", name="dead_letter_repair_pkey"),
    )
    op.create_table(
        "dead_letter_history",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("closed_on", sa.Date(), nullable=False),
        sa.Column("ending", sa.Text(), nullable=False, comment="resolved, repaired or superseded"),
        sa.Column("days_open", sa.Integer(), nullable=False, comment="whole days"),
        sa.Column("letters", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "site", "resource_type", "code", "closed_on", "ending", "days_open", name="dead_letter_history_pkey"
        ),
    )


def downgrade() -> None:
    op.drop_table("dead_letter_history")
    op.drop_table("dead_letter_repair")
    op.drop_column("dead_letter", "is_repaired")
    op.drop_column("dead_letter", "open_since")
