"""Codes and those of them with a concept, by export, table, element and code system: docs/vocabulary.md.

Empty at first: each export that is loaded from now on has its rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "coverage",
        sa.Column("export_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("vocabulary_hash", sa.Text(), nullable=True, comment="content_hash of the release; NULL: not known"),
        sa.Column("cdm_table", sa.Text(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("element", sa.Text(), nullable=False),
        sa.Column("system", sa.Text(), nullable=False, comment="empty: a code without one, a text, or nothing"),
        sa.Column("rows", sa.BigInteger(), nullable=False, comment="that have the element"),
        sa.Column("mapped", sa.BigInteger(), nullable=False, comment="of these, those with a concept"),
        sa.PrimaryKeyConstraint("export_id", "cdm_table", "resource_type", "element", "system", name="coverage_pkey"),
    )
    op.create_index("coverage_by_site", "coverage", ["site", "published_at"])


def downgrade() -> None:
    op.drop_table("coverage")
