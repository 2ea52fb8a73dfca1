"""Roles of links say which column of which table they fill; what older versions left wrong is put right or mapped again.

Until now a link that waited was named by its column alone (`provider_id`), and filled that column in every table. What
cannot be known from the rows is left to the next publication: its resource is `stale` under the role `mapped_again`.
"""

from __future__ import annotations

from alembic import context, op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_EVENTS = (
    "condition_occurrence",
    "drug_exposure",
    "procedure_occurrence",
    "device_exposure",
    "measurement",
    "observation",
    "note",
)
#: Table → its columns that may wait. Those of encounters are not among them: see `_encounters`.
_COLUMNS = {
    "person": ("provider_id", "care_site_id"),
    "provider": ("care_site_id",),
    **dict.fromkeys(_EVENTS, ("visit_occurrence_id", "provider_id")),
}
_OLD = "('provider_id', 'care_site_id', 'visit_occurrence_id', 'stay_location')"
_TARGETS = {"provider_id": "provider", "care_site_id": "care_site", "visit_occurrence_id": "visit_occurrence"}

_INTO = "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
_ONCE = " ON CONFLICT (from_surrogate_id, role, to_surrogate_id) DO NOTHING"
#: A row of visit_detail that is a sub-encounter itself; the others are stays in locations.
_IS_ENCOUNTER = (
    "EXISTS (SELECT FROM id_map AS own WHERE own.cdm_table = 'visit_detail'"
    " AND own.surrogate_id = lineage.surrogate_id AND own.row_id = lineage.row_id)"
)


def upgrade() -> None:
    cdm = context.config.attributes.get("cdm_schema", "cdm")
    if op.get_bind().exec_driver_sql("SELECT 1 FROM resource_state LIMIT 1").first() is None:
        return
    _found_already(cdm)
    for table, columns in _COLUMNS.items():
        for column in columns:
            _convert(cdm, table, column, f"{table}.{column}")
    _encounters(cdm)
    op.execute(f"DELETE FROM reference WHERE state = 'pending' AND role IN {_OLD}")


def _convert(cdm: str, table: str, column: str, role: str, *, of_rows: str = "") -> None:
    """What waits under a column's name waits under the role of a table where the resource has a row without it."""
    op.execute(
        f"{_INTO} SELECT DISTINCT lineage.surrogate_id, '{role}', reference.to_surrogate_id, 'pending' FROM reference"
        f" JOIN lineage_{table} AS lineage ON lineage.surrogate_id = reference.from_surrogate_id"
        f" JOIN {cdm}.{table} AS row ON row.{table}_id = lineage.row_id"
        f" WHERE reference.state = 'pending' AND reference.role = '{column}' AND row.{column} IS NULL{of_rows}{_ONCE}"
    )


def _found_already(cdm: str) -> None:
    """A link that waits for what is there was not to be filled, or was forgotten: only its resource can tell."""
    for column, target in _TARGETS.items():
        op.execute(
            f"{_INTO} SELECT DISTINCT from_surrogate_id, 'mapped_again', from_surrogate_id, 'stale' FROM reference"
            f" JOIN id_map AS map ON map.surrogate_id = to_surrogate_id AND map.cdm_table = '{target}'"
            f" JOIN {cdm}.{target} AS row ON row.{target}_id = map.row_id"
            f" WHERE reference.state = 'pending' AND reference.role = '{column}'{_ONCE}"
        )


def _encounters(cdm: str) -> None:
    """Visits, their details, and stays: all filled `provider_id` and `care_site_id` of the visit alone."""
    # A Location that went was a stay's, also where it waits as if it were the visit's organization.
    is_place = (
        " EXISTS (SELECT FROM resource_state AS state JOIN site_resource_type AS kind USING (site_resource_type_id)"
        " WHERE state.surrogate_id = reference.to_surrogate_id AND kind.resource_type = 'Location')"
    )
    _convert(cdm, "visit_occurrence", "provider_id", "visit_occurrence.provider_id")
    _convert(cdm, "visit_occurrence", "care_site_id", "visit_occurrence.care_site_id", of_rows=f" AND NOT{is_place}")
    _convert(cdm, "visit_detail", "provider_id", "visit_occurrence.provider_id", of_rows=f" AND {_IS_ENCOUNTER}")
    _convert(cdm, "visit_detail", "provider_id", "visit_detail.provider_id", of_rows=f" AND NOT {_IS_ENCOUNTER}")
    op.execute(
        f"{_INTO} SELECT from_surrogate_id, 'visit_detail.care_site_id.by_row', to_surrogate_id, 'pending'"
        f" FROM reference WHERE state = 'pending' AND role = 'stay_location'{_ONCE}"
    )
    # The stays of an encounter have its provider.
    op.execute(
        f"UPDATE {cdm}.visit_detail AS row SET provider_id = visit.provider_id FROM lineage_visit_detail AS lineage"
        " JOIN lineage_visit_occurrence AS own USING (surrogate_id)"
        f" JOIN {cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = own.row_id"
        " WHERE row.visit_detail_id = lineage.row_id AND row.provider_id IS NULL AND visit.provider_id IS NOT NULL"
    )
    # Sub-encounters without a provider or a place, stays without a place, and visits at what is a stay's place.
    op.execute(
        f"{_INTO} SELECT DISTINCT lineage.surrogate_id, 'mapped_again', lineage.surrogate_id, 'stale'"
        f" FROM {cdm}.visit_detail AS row JOIN lineage_visit_detail AS lineage ON lineage.row_id = row.visit_detail_id"
        " WHERE (row.care_site_id IS NULL OR row.provider_id IS NULL"
        f" AND (row.parent_visit_detail_id IS NOT NULL OR {_IS_ENCOUNTER}))"
        " AND NOT EXISTS (SELECT FROM reference AS known WHERE known.from_surrogate_id = lineage.surrogate_id"
        f" AND known.role = 'visit_detail.care_site_id.by_row'){_ONCE}"
    )
    op.execute(
        f"{_INTO} SELECT DISTINCT lineage.surrogate_id, 'mapped_again', lineage.surrogate_id, 'stale'"
        " FROM lineage_visit_occurrence AS lineage"
        f" JOIN {cdm}.visit_occurrence AS row ON row.visit_occurrence_id = lineage.row_id"
        " JOIN lineage_care_site AS site ON site.row_id = row.care_site_id"
        " JOIN resource_state AS state ON state.surrogate_id = site.surrogate_id"
        " JOIN site_resource_type AS kind USING (site_resource_type_id)"
        f" WHERE kind.resource_type = 'Location'{_ONCE}"
    )


def downgrade() -> None:
    op.execute(
        f"{_INTO} SELECT DISTINCT from_surrogate_id, CASE WHEN role LIKE 'visit_detail.care_site_id%' THEN 'stay_location'"
        " ELSE split_part(role, '.', 2) END, to_surrogate_id, 'pending' FROM reference"
        f" WHERE state <> 'resolved' AND role LIKE '%.%'{_ONCE}"
    )
    op.execute("DELETE FROM reference WHERE role LIKE '%.%' OR role = 'mapped_again'")
