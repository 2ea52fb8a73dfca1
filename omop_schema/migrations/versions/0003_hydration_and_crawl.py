"""References that were fetched one by one, patients of crawls, and the kinds of exports that come of both."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint("export_job_kind", "export_job", type_="check")
    op.create_check_constraint(
        "export_job_kind", "export_job", "kind IN ('bulk', 'folder', 'replay', 'hydration', 'crawl')"
    )
    op.create_table(
        "hydrated_reference",
        sa.Column("surrogate_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False, comment="Type/id"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True, comment="HTTP status of a refusal"),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("export_id", sa.BigInteger(), nullable=False, comment="the hydration that asked last"),
        sa.CheckConstraint("state IN ('found', 'missing')", name="hydrated_reference_state"),
        sa.PrimaryKeyConstraint("surrogate_id"),
    )
    op.create_index("hydrated_reference_by_site", "hydrated_reference", ["site", "checked_at"])
    op.create_table(
        "crawl_patient",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, comment="1-based place in the list of patients"),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("export_id", "position"),
    )
    op.create_index("crawl_patient_by_id", "crawl_patient", ["patient_id"])
    op.create_table(
        "crawl_search",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("resources", sa.Integer(), nullable=False),
        sa.Column(
            "codes",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="what the server said → how often",
        ),
        sa.Column("searches", sa.Text(), nullable=False, comment="what was asked for beside the patient"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('complete', 'incomplete', 'refused', 'missing', 'failed')", name="crawl_search_state"
        ),
        sa.PrimaryKeyConstraint("export_id", "position", "resource_type"),
    )


def downgrade() -> None:
    op.drop_table("crawl_search")
    op.drop_table("crawl_patient")
    op.drop_table("hydrated_reference")
    op.execute("UPDATE export_job SET kind = 'folder' WHERE kind IN ('hydration', 'crawl')")
    op.drop_constraint("export_job_kind", "export_job", type_="check")
    op.create_check_constraint("export_job_kind", "export_job", "kind IN ('bulk', 'folder', 'replay')")
