"""Persons who were erased: nothing of theirs is loaded again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "erased_person",
        sa.Column(
            "surrogate_id",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="of the Patient: a salted hash, no id",
        ),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False, comment="the same for all of one erasure"),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True, comment="NULL: it was interrupted"),
        sa.Column(
            "counts",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="what the whole erasure found: rows by table, lines, letters",
        ),
        sa.PrimaryKeyConstraint("surrogate_id"),
    )
    op.create_index("erased_person_by_site", "erased_person", ["site"], unique=False)


def downgrade() -> None:
    op.drop_table("erased_person")
