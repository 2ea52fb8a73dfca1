"""Dependence: stale references, merged persons, facts that are asked for by name."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_RARE = (
    "'part_of', 'replaced_by', 'inpatient_visit', 'emergency_location', 'open_stay', 'open_stay_detail',"
    " 'open_coverage', 'race_observation', 'birth_year_only', 'discharge_death', 'site_part_of'"
)


def upgrade() -> None:
    op.drop_constraint("reference_state", "reference", type_="check")
    op.create_check_constraint("reference_state", "reference", "state IN ('resolved', 'pending', 'stale')")
    op.create_index("reference_not_resolved", "reference", ["role"], postgresql_where="state <> 'resolved'")
    op.create_index(
        "reference_of_merged_person", "reference", ["to_surrogate_id"], postgresql_where="role = 'person_id'"
    )
    op.create_index("reference_value_rare", "reference_value", ["name"], postgresql_where=f"name IN ({_RARE})")


def downgrade() -> None:
    op.drop_index("reference_value_rare", "reference_value")
    op.drop_index("reference_of_merged_person", "reference")
    op.drop_index("reference_not_resolved", "reference")
    op.drop_constraint("reference_state", "reference", type_="check")
    op.create_check_constraint("reference_state", "reference", "state IN ('resolved', 'pending')")
