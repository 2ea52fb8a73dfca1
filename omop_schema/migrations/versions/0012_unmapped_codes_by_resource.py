"""Codes without a concept are kept by resource, with their display: what is counted changes with the resource.

What was counted by export until now is left out: the next export that brings a resource counts its codes anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_table("unmapped_code")
    op.create_table(
        "unmapped_coding",
        sa.Column(
            "coding_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="key of the other columns"
        ),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("element", sa.Text(), nullable=False),
        sa.Column("system", sa.Text(), comment="NULL: text only, or a code without a system"),
        sa.Column("code", sa.Text()),
        sa.Column(
            "display", sa.Text(), comment="of the coding; a text only where the site's allow-list names the type"
        ),
        sa.PrimaryKeyConstraint("coding_id"),
    )
    op.create_table(
        "unmapped_use",
        sa.Column("surrogate_id", sa.BigInteger(), nullable=False),
        sa.Column("coding_id", sa.BigInteger(), nullable=False),
        sa.Column("export_id", sa.BigInteger(), nullable=False, comment="that loaded the resource as it is now"),
        sa.Column("count", sa.BigInteger(), nullable=False, comment="rows of the resource"),
    )
    op.create_index("unmapped_use_by_resource", "unmapped_use", ["surrogate_id"])


def downgrade() -> None:
    op.execute("DROP VIEW IF EXISTS unmapped_code")
    op.drop_table("unmapped_use")
    op.drop_table("unmapped_coding")
    op.create_table(
        "unmapped_code",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("element", sa.Text(), nullable=False),
        sa.Column("system", sa.Text(), comment="NULL: text only"),
        sa.Column("code", sa.Text()),
        sa.Column("count", sa.BigInteger(), nullable=False),
    )
    op.create_index("unmapped_code_by_export", "unmapped_code", ["export_id"])
