"""Of which order or visit records of medications are, so that one exposure counts once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "medication_record",
        sa.Column("surrogate_id", sa.BigInteger, nullable=False, comment="the resource: a record of a medication"),
        sa.Column("precedence", sa.SmallInteger, nullable=False, comment="1 administration, 2 dispense, 3 request"),
        sa.Column("link", sa.Text, nullable=False, comment="by what it belongs together with others"),
        sa.Column(
            "linked_surrogate_id", sa.BigInteger, nullable=False, comment="the MedicationRequest, or the Encounter"
        ),
        sa.Column("cdm_table", sa.Text, nullable=False, comment="where the record has a row, or would have one"),
        sa.Column(
            "person_surrogate_id", sa.BigInteger, nullable=False, comment="the Patient, by the record's own words"
        ),
        sa.Column("concept_id", sa.Integer, comment="of an encounter's: the drug"),
        sa.Column("start_date", sa.Date, comment="of an encounter's: the first day"),
        sa.Column("end_date", sa.Date, comment="of an encounter's: the last day"),
        sa.Column(
            "counts", sa.Boolean, nullable=False, comment="false: another record counts in its place, and it has no row"
        ),
        sa.CheckConstraint("link IN ('order', 'encounter')", name="medication_record_link"),
    )
    op.create_index("medication_record_by_resource", "medication_record", ["surrogate_id"])
    op.create_index("medication_record_by_link", "medication_record", ["linked_surrogate_id"])


def downgrade() -> None:
    op.drop_table("medication_record")
