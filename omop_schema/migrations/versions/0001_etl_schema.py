"""Every table of the `etl` schema as of version 0.1.0."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_LINEAGE_TABLES = (
    "person",
    "death",
    "visit_occurrence",
    "visit_detail",
    "condition_occurrence",
    "drug_exposure",
    "procedure_occurrence",
    "device_exposure",
    "measurement",
    "observation",
    "note",
    "specimen",
    "location",
    "care_site",
    "provider",
    "payer_plan_period",
)


def upgrade() -> None:
    op.create_table(
        "cool_down",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("next_try", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("site", "client_id", "group_id"),
    )
    op.create_table(
        "dead_letter",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Text(), nullable=True, comment="NULL where the line could not be read that far"),
        sa.Column("surrogate_id", sa.BigInteger(), nullable=True),
        sa.Column("export_id", sa.BigInteger(), nullable=False, comment="of the last time"),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False, comment="1-based"),
        sa.Column("byte_offset", sa.BigInteger(), nullable=False),
        sa.Column("byte_length", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False, comment="parse, view, transform or publish"),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=True, comment="FHIRPath"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("caused_by", sa.Text(), nullable=True, comment="Type/id of the resource that is the cause"),
        sa.Column("caused_by_surrogate_id", sa.BigInteger(), nullable=True),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("raw_is_complete", sa.Boolean(), nullable=False),
        sa.Column("raw_hash_high", sa.BigInteger(), nullable=False),
        sa.Column("raw_hash_low", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_by_export_id", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("state IN ('open', 'resolved', 'superseded')", name="dead_letter_state"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "dead_letter_by_cause",
        "dead_letter",
        ["caused_by_surrogate_id"],
        unique=False,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "dead_letter_by_resource",
        "dead_letter",
        ["surrogate_id"],
        unique=False,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "dead_letter_one_open",
        "dead_letter",
        ["site", "resource_type", "raw_hash_high", "raw_hash_low"],
        unique=True,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "exclusion_count",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("file_number", sa.Integer(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("export_id", "file_number", "resource_type", "reason"),
    )
    op.create_table(
        "export_file",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("file_number", sa.Integer(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False, comment="path relative to the export's landing folder"),
        sa.Column("expected_count", sa.BigInteger(), nullable=True, comment="`count` of the manifest"),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("lines", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("loaded", sa.BigInteger(), nullable=True),
        sa.Column("unchanged", sa.BigInteger(), nullable=True),
        sa.Column("superseded", sa.BigInteger(), nullable=True),
        sa.Column("excluded", sa.BigInteger(), nullable=True),
        sa.Column("rejected", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("export_id", "file_number"),
    )
    op.create_table(
        "export_job",
        sa.Column("export_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=True, comment="FHIR Group id; for folder and replay exports a label"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "resource_types", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        sa.Column(
            "status_url", sa.Text(), nullable=True, comment="Content-Location: saved before anything waits on it"
        ),
        sa.Column("manifest", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("progress", sa.Text(), nullable=True, comment="the last X-Progress"),
        sa.Column("error", sa.Text(), nullable=True, comment="what went wrong, without patient data"),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_poll_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("transaction_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("landed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('bulk', 'folder', 'replay')", name="export_job_kind"),
        sa.CheckConstraint(
            "state IN ('requested', 'running', 'complete', 'landed', 'published', 'skipped', 'failed', 'gone')",
            name="export_job_state",
        ),
        sa.PrimaryKeyConstraint("export_id"),
    )
    op.create_index(
        "export_job_one_open",
        "export_job",
        ["site", "group_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'bulk' AND state IN ('requested', 'running', 'complete', 'landed')"),
    )
    op.create_table(
        "id_map",
        sa.Column("cdm_table", sa.Text(), nullable=False),
        sa.Column("surrogate_id", sa.BigInteger(), nullable=False),
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("cdm_table", "surrogate_id", name="id_map_pkey"),
    )
    op.create_table(
        "publication",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("vocabulary_release", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="of mappings, vocabulary and code"),
        sa.Column("cdm_version", sa.Text(), nullable=False),
        sa.Column("ig_version", sa.Text(), nullable=False),
        sa.Column("software_version", sa.Text(), nullable=False),
        sa.Column("rows_inserted", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("rows_deleted", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "mapping_rates", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("transform_seconds", sa.Double(), nullable=True),
        sa.Column("publish_seconds", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("export_id"),
    )
    op.create_table(
        "reference",
        sa.Column("from_surrogate_id", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False, comment="the column or fact that the reference fills"),
        sa.Column("to_surrogate_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('resolved', 'pending')", name="reference_state"),
        sa.PrimaryKeyConstraint("from_surrogate_id", "role", "to_surrogate_id", name="reference_pkey"),
    )
    op.create_index("reference_by_target", "reference", ["to_surrogate_id"], unique=False)
    op.create_table(
        "reference_value",
        sa.Column("surrogate_id", sa.BigInteger(), nullable=False, comment="the resource that others ask about"),
        sa.Column("name", sa.Text(), nullable=False, comment="such as medication_code, birth_date, encounter_start"),
        sa.Column("owner_surrogate_id", sa.BigInteger(), nullable=False, comment="the resource that says it"),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("surrogate_id", "name", "owner_surrogate_id", name="reference_value_pkey"),
    )
    op.create_index("reference_value_by_owner", "reference_value", ["owner_surrogate_id"], unique=False)
    op.create_table(
        "resource_state",
        sa.Column("surrogate_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("site_resource_type_id", sa.SmallInteger(), nullable=False),
        sa.Column("resource_id", sa.Text(), nullable=False),
        sa.Column("raw_hash_high", sa.BigInteger(), nullable=False, comment="xxh3-128 of the landed line"),
        sa.Column("raw_hash_low", sa.BigInteger(), nullable=False),
        sa.Column(
            "content_hash", sa.BigInteger(), nullable=True, comment="of the canonical content; NULL: not computed yet"
        ),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.BigInteger(), nullable=False, comment="of mapping, vocabulary and code"),
        sa.Column("export_id", sa.BigInteger(), nullable=False, comment="the export whose line made this state"),
        sa.Column("file_number", sa.Integer(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("byte_offset", sa.BigInteger(), nullable=False),
        sa.Column("byte_length", sa.BigInteger(), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False, comment="transactionTime of that export"),
        sa.PrimaryKeyConstraint("surrogate_id"),
    )
    op.create_index("resource_state_by_type", "resource_state", ["site_resource_type_id"], unique=False)
    op.create_table(
        "row_issue",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("surrogate_id", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=True),
    )
    op.create_index("row_issue_by_resource", "row_issue", ["surrogate_id"], unique=False)
    op.create_table(
        "site_resource_type",
        sa.Column("site_resource_type_id", sa.SmallInteger(), autoincrement=True, nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("site_resource_type_id"),
        sa.UniqueConstraint("site", "resource_type", name="site_resource_type_name"),
    )
    op.create_table(
        "unmapped_code",
        sa.Column("export_id", sa.BigInteger(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("element", sa.Text(), nullable=False),
        sa.Column("system", sa.Text(), nullable=True, comment="NULL: text only"),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("count", sa.BigInteger(), nullable=False),
    )
    op.create_index("unmapped_code_by_export", "unmapped_code", ["export_id"], unique=False)
    op.create_table(
        "vocabulary_release",
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("loaded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("folder_label", sa.Text(), nullable=False),
        sa.Column("concept_count", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("release"),
    )
    for table in _LINEAGE_TABLES:
        _create_lineage(f"lineage_{table}")


def downgrade() -> None:
    for table in _LINEAGE_TABLES:
        op.drop_table(f"lineage_{table}")
    op.drop_table("vocabulary_release")
    op.drop_table("unmapped_code")
    op.drop_table("site_resource_type")
    op.drop_table("row_issue")
    op.drop_table("resource_state")
    op.drop_table("reference_value")
    op.drop_table("reference")
    op.drop_table("publication")
    op.drop_table("id_map")
    op.drop_table("export_job")
    op.drop_table("export_file")
    op.drop_table("exclusion_count")
    op.drop_table("dead_letter")
    op.drop_table("cool_down")


def _create_lineage(name: str) -> None:
    op.create_table(
        name,
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.Column("surrogate_id", sa.BigInteger(), nullable=False),
        sa.Column("row_key", sa.BigInteger(), nullable=False),
        sa.Column("export_id", sa.BigInteger(), nullable=False),
    )
    op.create_index(f"{name}_by_resource", name, ["surrogate_id"])
    op.create_index(f"{name}_by_row", name, ["row_id"], postgresql_using="brin")
