"""Lineage of events says on which day of contact a row came to be known, where that is after the row's own date.

Rows have it from the next time that their resource is mapped: observation periods go by their own dates until then. The
index of rare facts knows two more: a Patient's own death, and which care sites take their place of service from visits.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0017"
branch_labels = None
depends_on = None

_TABLES = (
    "condition_occurrence",
    "drug_exposure",
    "procedure_occurrence",
    "device_exposure",
    "measurement",
    "observation",
    "note",
    "specimen",
)
_BEFORE = (
    "'part_of', 'replaced_by', 'inpatient_visit', 'emergency_location', 'open_stay', 'open_stay_detail',"
    " 'open_coverage', 'race_observation', 'birth_year_only', 'discharge_death', 'site_part_of'"
)
_AFTER = _BEFORE.replace("'site_part_of'", "'patient_death', 'place_by_visits', 'site_part_of'")


def upgrade() -> None:
    for table in _TABLES:
        name = f"lineage_{table}"
        op.add_column(
            name,
            sa.Column(
                "contact_date", sa.Date(), nullable=True, comment="of contact, where it is after the row's own date"
            ),
        )
        op.create_index(
            f"{name}_by_contact",
            name,
            ["row_id"],
            postgresql_include=["contact_date"],
            postgresql_where=sa.text("contact_date IS NOT NULL"),
        )
    _index_rare_facts(_AFTER)


def downgrade() -> None:
    op.execute("DROP VIEW IF EXISTS row_source")
    for table in _TABLES:
        op.drop_index(f"lineage_{table}_by_contact", table_name=f"lineage_{table}")
        op.drop_column(f"lineage_{table}", "contact_date")
    _index_rare_facts(_BEFORE)


def _index_rare_facts(names: str) -> None:
    op.drop_index("reference_value_rare", table_name="reference_value")
    op.create_index("reference_value_rare", "reference_value", ["name"], postgresql_where=sa.text(f"name IN ({names})"))
