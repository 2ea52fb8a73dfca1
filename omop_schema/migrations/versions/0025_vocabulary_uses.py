"""What rows took from the vocabulary, and which release each site was compared with last: docs/decisions/0024."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "vocabulary_use",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("use_id", sa.BigInteger(), nullable=False, comment="hash of asked"),
        sa.Column(
            "asked",
            sa.Text(),
            nullable=False,
            comment="JSON: [system, code] of each coding of a code set, or a mapped text",
        ),
        sa.Column("answer", sa.BigInteger(), nullable=False, comment="hash of all that rows can take from it"),
        sa.Column("targets", sa.Text(), nullable=False, comment="standard concepts, joined by |; empty: none"),
        sa.PrimaryKeyConstraint("site", "use_id", name="vocabulary_use_pkey"),
    )
    op.create_table(
        "vocabulary_state",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("vocabulary_release", sa.Text(), nullable=False, comment="that the site's answers are of"),
        sa.Column("vocabulary_hash", sa.Text(), nullable=False, comment="of its content"),
        sa.Column("local_hash", sa.Text(), nullable=False, comment="of the local map; empty: none"),
        sa.Column("rules_hash", sa.Text(), nullable=False, comment="of code and mappings by which was asked"),
        sa.Column(
            "publication_hash", sa.Text(), nullable=False, comment="of concepts that publication itself asks for"
        ),
        sa.Column(
            "first_export_id", sa.BigInteger(), nullable=False, comment="exports from this on left their answers"
        ),
        sa.Column("compared_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("site"),
    )


def downgrade() -> None:
    op.execute("DROP VIEW IF EXISTS row_source")
    op.drop_table("vocabulary_state")
    op.drop_table("vocabulary_use")
