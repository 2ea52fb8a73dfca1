"""Local maps: what people decided about codes and texts, apart from the vocabulary's releases.

Rows of `vocab.source_to_concept_map` are taken in by the next load of a site (`pipeline.warehouse.local_map`).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "local_map",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("site", sa.Text(), comment="NULL: of all sites"),
        sa.Column("source_system", sa.Text(), nullable=False, comment="URI, OID or vocabulary_id; `text` of a text"),
        sa.Column("source_code", sa.Text(), comment="NULL: the source is a text"),
        sa.Column("source_text", sa.Text(), comment="of a concept without a code"),
        sa.Column("source_description", sa.Text()),
        sa.Column("source_concept_id", sa.BigInteger(), comment="NULL: what the vocabulary has for the code"),
        sa.Column(
            "target_concept_id", sa.BigInteger(), nullable=False, comment="in the active release; 0: reviewed, no map"
        ),
        sa.Column("approved_concept_id", sa.BigInteger(), comment="that the reviewer chose; NULL: target_concept_id"),
        sa.Column("kind", sa.Text(), server_default=sa.text("'to'"), nullable=False, comment="to, value or unit"),
        sa.Column("equivalence", sa.Text(), comment="as Usagi has it, such as EQUAL or WIDER"),
        sa.Column(
            "status", sa.Text(), server_default=sa.text("'unchecked'"), nullable=False, comment="approved ones map"
        ),
        sa.Column("mapping_type", sa.Text(), comment="as the file that brought it had it"),
        sa.Column("reviewer", sa.Text()),
        sa.Column("reviewed_at", sa.DateTime(timezone=True)),
        sa.Column("comment", sa.Text()),
        sa.Column("target_problem", sa.Text(), comment="why the active release does not let the target be used"),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), comment="NULL: it holds"),
        sa.Column("origin", sa.Text(), server_default=sa.text("'sql'"), nullable=False, comment="what brought it"),
        sa.Column(
            "is_written",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="to source_to_concept_map",
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.CheckConstraint("(source_code IS NULL) <> (source_text IS NULL)", name="local_map_source"),
        sa.CheckConstraint("kind IN ('to', 'value', 'unit')", name="local_map_kind"),
        sa.CheckConstraint("status IN ('approved', 'unchecked', 'flagged', 'ignored')", name="local_map_status"),
    )
    op.create_index("local_map_current", "local_map", ["id"], postgresql_where=sa.text("valid_until IS NULL"))


def downgrade() -> None:
    op.drop_table("local_map")
