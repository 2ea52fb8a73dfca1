"""Tables and views of the `etl` schema: what the pipeline knows about exports, resources, rows and failures.

Everything that ties an OMOP row to a FHIR id lives here, outside the `cdm` schema and under grants of its
own (f2o-023, 024). Tables are declared once; Alembic revisions in `migrations/` are compared with this module by
a test. Five views are a stable interface: `row_source`, `dead_letter_open`, `file_account`, `exclusion`, `unmapped_code`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from omop_schema.contact import CONTACT_DATE, CONTACT_TABLES, NO_CONTACT
from omop_schema.exports import OPEN_STATES, ExportKind, ExportState, sql_values
from omop_schema.operations import alert_tables

__all__ = [
    "ANSWER_CHANGED",
    "LINEAGE_COLUMNS",
    "LINEAGE_TABLES",
    "RARE_FACTS",
    "build_metadata",
    "lineage_table_name",
    "view_statements",
]

#: CDM tables whose rows come from FHIR resources and have lineage.
LINEAGE_TABLES = (
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

#: Facts that publication asks for by name alone, among the many that it does not.
RARE_FACTS = (
    "part_of",
    "replaced_by",
    "inpatient_visit",
    "emergency_location",
    "open_stay",
    "open_stay_detail",
    "open_coverage",
    "race_observation",
    "birth_year_only",
    "discharge_death",
    "patient_death",
    "place_by_visits",
    "site_part_of",
)

#: Columns of the lineage tables (`lineage_table_name`), all bigint and never NULL. `row_id`: the row's primary key
#: (person_id for death); `row_key` distinguishes the rows of one resource.
LINEAGE_COLUMNS = ("row_id", "surrogate_id", "row_key", "export_id")

#: `resource_state.fingerprint` of a resource whose codes have another answer in the vocabulary now: of no settings.
ANSWER_CHANGED = 0

_NOW = text("now()")


def lineage_table_name(cdm_table: str) -> str:
    return f"lineage_{cdm_table}"


def build_metadata(schema: str) -> MetaData:
    """The tables of the `etl` schema under the given schema name."""
    metadata = MetaData(schema=schema)
    _export_tables(metadata)
    _kick_off_tables(metadata)
    _file_tables(metadata)
    _publication_tables(metadata)
    _release_table(metadata)
    _rest_tables(metadata)
    _resource_tables(metadata)
    _reference_tables(metadata)
    _medication_tables(metadata)
    _group_tables(metadata)
    _failure_tables(metadata)
    _repair_tables(metadata)
    _issue_tables(metadata)
    _access_tables(metadata)
    _erasure_tables(metadata)
    _settings_tables(metadata)
    _vocabulary_tables(metadata)
    _local_map_table(metadata)
    _coverage_table(metadata)
    _check_table(metadata)
    alert_tables(metadata)
    for cdm_table in LINEAGE_TABLES:
        _lineage_table(metadata, cdm_table)
    return metadata


def _time(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _export_tables(metadata: MetaData) -> None:
    Table(
        "export_job",
        metadata,
        Column("export_id", BigInteger, primary_key=True, autoincrement=True),
        Column("site", Text, nullable=False),
        Column("group_id", Text, comment="FHIR Group id; for folder and replay exports a label"),
        Column("kind", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("attempt", Integer, nullable=False, server_default=text("1")),
        Column("resource_types", JSONB, nullable=False, server_default=text("'[]'")),
        Column("status_url", Text, comment="Content-Location: saved before anything waits on it"),
        Column("manifest", JSONB),
        Column("progress", Text, comment="the last X-Progress"),
        Column("error", Text, comment="what went wrong, without patient data"),
        _time("requested_at", nullable=False),
        _time("next_poll_at"),
        _time("transaction_time"),
        _time("landed_at"),
        _time("published_at"),
        _time("deleted_at"),
        Column("since", DateTime(timezone=True), comment="`_since` of the kick-off; NULL: everything was asked for"),
        Column(
            "notes", JSONB, nullable=False, server_default=text("'[]'"), comment="sentences: what was done otherwise"
        ),
        Column("failing_since", DateTime(timezone=True), comment="of the first status call in a row that failed"),
        Column("complete_since", DateTime(timezone=True), comment="when the manifest came"),
        Column("pruned_at", DateTime(timezone=True), comment="landing holds at most the lines that are needed"),
        CheckConstraint(f"kind IN {sql_values(ExportKind)}", name="export_job_kind"),
        CheckConstraint(f"state IN {sql_values(ExportState)}", name="export_job_state"),
        Index(
            "export_job_one_open",
            "site",
            "group_id",
            unique=True,
            postgresql_where=text(f"kind = '{ExportKind.BULK}' AND state IN {sql_values(OPEN_STATES)}"),
        ),
    )


def _kick_off_tables(metadata: MetaData) -> None:
    """When a group may be asked for, and when it will be."""
    Table(
        "cool_down",
        metadata,
        Column("site", Text, primary_key=True),
        Column("client_id", Text, primary_key=True),
        Column("group_id", Text, primary_key=True),
        _time("next_try", nullable=False),
        Column("reason", Text, nullable=False),
    )
    Table(
        "next_kick_off",
        metadata,
        Column("site", Text, primary_key=True),
        Column("client_id", Text, primary_key=True),
        Column("group_id", Text, primary_key=True),
        _time("next_try", nullable=False),
        Column("attempt", Integer, nullable=False, comment="how often it was refused for now"),
        _time("give_up_at", nullable=False),
        Column("reason", Text, nullable=False),
    )


def _file_tables(metadata: MetaData) -> None:
    """The files of exports, what is wrong with them, and the accounts of their lines."""
    Table(
        "export_gap",
        metadata,
        Column("export_id", BigInteger, primary_key=True),
        Column("file_number", Integer, primary_key=True),
        Column("category", Text, nullable=False, comment="files, outcomes or deleted"),
        Column("resource_type", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("expected_count", BigInteger, comment="`count` of the manifest"),
        Column("lines", BigInteger, nullable=False, comment="of the file that was taken; 0: none was"),
        CheckConstraint("reason IN ('lost', 'unusable', 'count')", name="export_gap_reason"),
    )
    Table(
        "export_file",
        metadata,
        Column("export_id", BigInteger, primary_key=True),
        Column("file_number", Integer, primary_key=True),
        Column("resource_type", Text, nullable=False),
        Column("file", Text, nullable=False, comment="path relative to the export's landing folder"),
        Column("expected_count", BigInteger, comment="`count` of the manifest"),
        Column("bytes", BigInteger),
        Column("lines", BigInteger),
        Column("sha256", Text),
        Column("loaded", BigInteger),
        Column("unchanged", BigInteger),
        Column("unchanged_by_content", BigInteger, comment="of unchanged: other bytes, the same content"),
        Column("superseded", BigInteger),
        Column("excluded", BigInteger),
        Column("rejected", BigInteger),
    )
    Table(
        "export_outcome",
        metadata,
        Column("export_id", BigInteger, primary_key=True),
        Column("weight", Text, nullable=False, comment="informational, resource or fatal"),
        Column("severity", Text, primary_key=True),
        Column("code", Text, primary_key=True, comment="FHIR issue type; `unreadable` for a broken line"),
        Column("site_code", Text, primary_key=True, comment="Epic's own code such as 59108, or empty"),
        Column("count", BigInteger, nullable=False),
        CheckConstraint("weight IN ('informational', 'resource', 'fatal')", name="export_outcome_weight"),
    )
    Table(
        "exclusion_count",
        metadata,
        Column("export_id", BigInteger, primary_key=True),
        Column("file_number", Integer, primary_key=True),
        Column("resource_type", Text, primary_key=True),
        Column("reason", Text, primary_key=True),
        Column("count", BigInteger, nullable=False),
    )


def _publication_tables(metadata: MetaData) -> None:
    Table(
        "publication",
        metadata,
        Column("export_id", BigInteger, primary_key=True),
        _time("published_at", nullable=False),
        Column("vocabulary_release", Text, nullable=False),
        Column("fingerprint", Text, nullable=False, comment="of mappings, vocabulary and code"),
        Column("cdm_version", Text, nullable=False),
        Column("ig_version", Text, nullable=False),
        Column("software_version", Text, nullable=False),
        Column("rows_inserted", JSONB, nullable=False),
        Column("rows_deleted", JSONB, nullable=False),
        Column("mapping_rates", JSONB, nullable=False, server_default=text("'{}'")),
        Column(
            "vanished", JSONB, nullable=False, server_default=text("'{}'"), comment="what came of it → type → count"
        ),
        Column(
            "value_checks",
            JSONB,
            nullable=False,
            server_default=text("'[]'"),
            comment="what rules about numbers found: finding, action, concept, unit, count",
        ),
        Column(
            "duplicates",
            JSONB,
            nullable=False,
            server_default=text("'[]'"),
            comment="facts that two resources bring: rule, table, facts, rows",
        ),
        Column("transform_seconds", Double),
        Column("publish_seconds", Double),
        Column("vocabulary_hash", Text, comment="content_hash of the release; NULL: not known"),
    )


def _release_table(metadata: MetaData) -> None:
    Table(
        "vocabulary_release",
        metadata,
        Column("release", Text, nullable=False, comment="label: version of the vocabulary None"),
        Column("loaded_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
        Column("folder_label", Text, nullable=False),
        Column("concept_count", BigInteger, nullable=False),
        Column("content_hash", Text, primary_key=True, comment="of the download and of what the site added to it"),
        Column("is_current", Boolean, nullable=False),
        Column("state", Text, nullable=False, server_default=text("'ready'")),
        Column("schema_name", Text, comment="where its tables are; NULL: the vocabulary's schema itself, or gone"),
        Column("active_since", DateTime(timezone=True), comment="NULL: never was"),
        Column("download_hash", Text, comment="of the files alone"),
        Column(
            "vocabularies",
            JSONB,
            nullable=False,
            server_default=text("'{}'"),
            comment="vocabulary_id → concepts, maps_to, version",
        ),
        Column(
            "notes",
            JSONB,
            nullable=False,
            server_default=text("'{}'"),
            comment="what was repaired, ignored, left out and overruled",
        ),
        CheckConstraint(
            "state IN ('loading', 'ready', 'dropped') AND (state = 'ready' OR NOT is_current)",
            name="vocabulary_release_state",
        ),
        Index("vocabulary_release_current", "is_current", unique=True, postgresql_where=text("is_current")),
    )


def _rest_tables(metadata: MetaData) -> None:
    """What was asked for one by one: references that exports lack, and the patients of crawls."""
    Table(
        "hydrated_reference",
        metadata,
        Column("surrogate_id", BigInteger, primary_key=True, autoincrement=False),
        Column("site", Text, nullable=False),
        Column("reference", Text, nullable=False, comment="Type/id"),
        Column("state", Text, nullable=False),
        Column("status", Integer, comment="HTTP status of a refusal"),
        _time("checked_at", nullable=False),
        Column("export_id", BigInteger, nullable=False, comment="the hydration that asked last"),
        CheckConstraint("state IN ('found', 'missing')", name="hydrated_reference_state"),
        Index("hydrated_reference_by_site", "site", "checked_at"),
    )
    Table(
        "crawl_patient",
        metadata,
        Column("export_id", BigInteger, primary_key=True),
        Column("position", Integer, primary_key=True, comment="1-based place in the list of patients"),
        Column("patient_id", Text, nullable=False),
        Index("crawl_patient_by_id", "patient_id"),
    )
    Table(
        "crawl_search",
        metadata,
        Column("export_id", BigInteger, primary_key=True),
        Column("position", Integer, primary_key=True),
        Column("resource_type", Text, primary_key=True),
        Column("state", Text, nullable=False),
        Column("resources", Integer, nullable=False),
        Column("codes", JSONB, nullable=False, server_default=text("'{}'"), comment="what the server said → how often"),
        Column("searches", Text, nullable=False, comment="what was asked for beside the patient"),
        _time("started_at", nullable=False),
        CheckConstraint(
            "state IN ('complete', 'incomplete', 'refused', 'missing', 'failed')", name="crawl_search_state"
        ),
    )


def _resource_tables(metadata: MetaData) -> None:
    Table(
        "site_resource_type",
        metadata,
        Column("site_resource_type_id", SmallInteger, primary_key=True, autoincrement=True),
        Column("site", Text, nullable=False),
        Column("resource_type", Text, nullable=False),
        UniqueConstraint("site", "resource_type", name="site_resource_type_name"),
    )
    Table(
        "resource_state",
        metadata,
        Column("surrogate_id", BigInteger, primary_key=True, autoincrement=False),
        Column("site_resource_type_id", SmallInteger, nullable=False),
        Column("resource_id", Text, nullable=False),
        Column("raw_hash_high", BigInteger, nullable=False, comment="xxh3-128 of the landed line"),
        Column("raw_hash_low", BigInteger, nullable=False),
        Column("content_hash", BigInteger, comment="xxh3-64 of the canonical content; NULL: none"),
        Column("outcome", Text, nullable=False),
        Column("reason", Text),
        Column("fingerprint", BigInteger, nullable=False, comment="of mapping, vocabulary and code"),
        Column("export_id", BigInteger, nullable=False, comment="the export whose line made this state"),
        Column("file_number", Integer, nullable=False),
        Column("line", BigInteger, nullable=False),
        Column("byte_offset", BigInteger, nullable=False),
        Column("byte_length", BigInteger, nullable=False),
        Column("as_of", DateTime(timezone=True), nullable=False, comment="transactionTime of that export"),
        Index("resource_state_by_type", "site_resource_type_id"),
        Index("resource_state_returned", "surrogate_id", postgresql_where=text("reason = 'returned'")),
    )
    Table(
        "known_mark",
        metadata,
        Column("site", Text, primary_key=True),
        Column("mark", Text, nullable=False, comment="of the states: files of known lines with another mark are old"),
    )
    Table(
        "id_map",
        metadata,
        Column("cdm_table", Text, nullable=False),
        Column("surrogate_id", BigInteger, nullable=False),
        Column("row_id", BigInteger, nullable=False),
        PrimaryKeyConstraint("cdm_table", "surrogate_id", name="id_map_pkey"),
    )


def _reference_tables(metadata: MetaData) -> None:
    """References from resource to resource, and values that others ask for."""
    rare = ", ".join(f"'{name}'" for name in RARE_FACTS)
    Table(
        "reference",
        metadata,
        Column("from_surrogate_id", BigInteger, nullable=False),
        Column("role", Text, nullable=False, comment="the column or fact that the reference fills"),
        Column("to_surrogate_id", BigInteger, nullable=False),
        Column("state", Text, nullable=False),
        Column(
            "is_by_identifier",
            Boolean,
            nullable=False,
            server_default=text("false"),
            comment="the target is the keyed hash of an identifier, not a resource",
        ),
        PrimaryKeyConstraint("from_surrogate_id", "role", "to_surrogate_id", name="reference_pkey"),
        CheckConstraint("state IN ('resolved', 'pending', 'stale')", name="reference_state"),
        Index("reference_by_target", "to_surrogate_id"),
        Index("reference_not_resolved", "role", postgresql_where=text("state <> 'resolved'")),
        Index("reference_of_merged_person", "to_surrogate_id", postgresql_where=text("role = 'person_id'")),
    )
    Table(
        "reference_value",
        metadata,
        Column("surrogate_id", BigInteger, nullable=False, comment="the resource that others ask about"),
        Column("name", Text, nullable=False, comment="such as medication_code, birth_date, encounter_start"),
        Column("owner_surrogate_id", BigInteger, nullable=False, comment="the resource that says it"),
        Column("value", Text, nullable=False),
        PrimaryKeyConstraint("surrogate_id", "name", "owner_surrogate_id", name="reference_value_pkey"),
        Index("reference_value_by_owner", "owner_surrogate_id"),
        Index("reference_value_role", "value", postgresql_where=text("name = 'role_practitioner'")),
        Index("reference_value_rare", "name", postgresql_where=text(f"name IN ({rare})")),
    )


def _medication_tables(metadata: MetaData) -> None:
    """Of which order or visit records of medications are: docs/decisions/0023-double-counting.md."""
    Table(
        "medication_record",
        metadata,
        Column("surrogate_id", BigInteger, nullable=False, comment="the resource: a record of a medication"),
        Column("precedence", SmallInteger, nullable=False, comment="1 administration, 2 dispense, 3 request"),
        Column("link", Text, nullable=False, comment="by what it belongs together with others"),
        Column("linked_surrogate_id", BigInteger, nullable=False, comment="the MedicationRequest, or the Encounter"),
        Column("cdm_table", Text, nullable=False, comment="where the record has a row, or would have one"),
        Column("person_surrogate_id", BigInteger, nullable=False, comment="the Patient, by the record's own words"),
        Column("concept_id", Integer, comment="of an encounter's: the drug"),
        Column("start_date", Date, comment="of an encounter's: the first day"),
        Column("end_date", Date, comment="of an encounter's: the last day"),
        Column(
            "counts", Boolean, nullable=False, comment="false: another record counts in its place, and it has no row"
        ),
        CheckConstraint("link IN ('order', 'encounter')", name="medication_record_link"),
        Index("medication_record_by_resource", "surrogate_id"),
        Index("medication_record_by_link", "linked_surrogate_id"),
    )


def _group_tables(metadata: MetaData) -> None:
    """Which groups contained what: docs/decisions/0011-vanished-resources.md."""
    Table(
        "group_export",
        metadata,
        Column("export_id", BigInteger, primary_key=True, autoincrement=False),
        Column("site", Text, nullable=False),
        Column("group_id", Text, nullable=False),
        Column("members", BigInteger, nullable=False, comment="resources that the export held"),
        Column("complete_types", JSONB, nullable=False, comment="of which it held all that the group has"),
        Column("earlier_is_lost", Boolean, nullable=False, comment="what the group held before is not known any more"),
        Index("group_export_by_group", "site", "group_id"),
    )
    Table(
        "absent_resource",
        metadata,
        Column("surrogate_id", BigInteger, nullable=False),
        Column("group_id", Text, nullable=False),
        Column("last_export_id", BigInteger, nullable=False, comment="the group's last export that held it"),
        PrimaryKeyConstraint("surrogate_id", "group_id", name="absent_resource_pkey"),
        Index("absent_resource_by_last", "last_export_id"),
    )


def _failure_tables(metadata: MetaData) -> None:
    Table(
        "dead_letter",
        metadata,
        Column("id", BigInteger, primary_key=True, autoincrement=True),
        Column("site", Text, nullable=False),
        Column("resource_type", Text, nullable=False),
        Column("resource_id", Text, comment="NULL where the line could not be read that far"),
        Column("surrogate_id", BigInteger),
        Column("export_id", BigInteger, nullable=False, comment="of the last time"),
        Column("file", Text, nullable=False),
        Column("line", BigInteger, nullable=False, comment="1-based"),
        Column("byte_offset", BigInteger, nullable=False),
        Column("byte_length", BigInteger, nullable=False),
        Column("stage", Text, nullable=False, comment="parse, view, transform or publish"),
        Column("code", Text, nullable=False),
        Column("path", Text, comment="FHIRPath"),
        Column("reason", Text, nullable=False),
        Column("caused_by", Text, comment="Type/id of the resource that is the cause"),
        Column("caused_by_surrogate_id", BigInteger),
        Column("raw", LargeBinary, nullable=False),
        Column("raw_is_complete", Boolean, nullable=False),
        Column("raw_hash_high", BigInteger, nullable=False),
        Column("raw_hash_low", BigInteger, nullable=False),
        Column("state", Text, nullable=False),
        _time("first_seen", nullable=False),
        _time("last_seen", nullable=False),
        _time("closed_at"),
        Column("closed_by_export_id", BigInteger),
        Column(
            "open_since",
            DateTime(timezone=True),
            nullable=False,
            comment="when a line of this resource was first rejected; older than first_seen where the line changed since",
        ),
        Column(
            "is_repaired",
            Boolean,
            nullable=False,
            server_default=text("false"),
            comment="closed by a line that a person repaired",
        ),
        CheckConstraint("state IN ('open', 'resolved', 'superseded')", name="dead_letter_state"),
        Index(
            "dead_letter_one_open",
            "site",
            "resource_type",
            "raw_hash_high",
            "raw_hash_low",
            unique=True,
            postgresql_where=text("state = 'open'"),
        ),
        Index("dead_letter_by_cause", "caused_by_surrogate_id", postgresql_where=text("state = 'open'")),
        Index("dead_letter_by_resource", "surrogate_id", postgresql_where=text("state = 'open'")),
    )


def _repair_tables(metadata: MetaData) -> None:
    """Repairs of dead letters that are under way, which publication takes out, and letters that retention removed."""
    Table(
        "dead_letter_repair",
        metadata,
        Column("export_id", BigInteger, primary_key=True, autoincrement=False, comment="the replay that brings it"),
        Column("letter_id", BigInteger, primary_key=True, autoincrement=False),
        Column("raw_hash_high", BigInteger, nullable=False, comment="xxh3-128 of the repaired line"),
        Column("raw_hash_low", BigInteger, nullable=False),
    )
    Table(
        "dead_letter_history",
        metadata,
        Column("site", Text, primary_key=True),
        Column("resource_type", Text, primary_key=True),
        Column("code", Text, primary_key=True),
        Column("closed_on", Date, primary_key=True),
        Column("ending", Text, primary_key=True, comment="resolved, repaired or superseded"),
        Column("days_open", Integer, primary_key=True, autoincrement=False, comment="whole days"),
        Column("letters", BigInteger, nullable=False),
    )


def _issue_tables(metadata: MetaData) -> None:
    """What loaded rows lack: values that could not be used, codes without a concept."""
    Table(
        "row_issue",
        metadata,
        Column("export_id", BigInteger, nullable=False),
        Column("surrogate_id", BigInteger, nullable=False),
        Column("code", Text, nullable=False),
        Column("path", Text),
        Index("row_issue_by_resource", "surrogate_id"),
    )
    Table(
        "unmapped_coding",
        metadata,
        Column("coding_id", BigInteger, primary_key=True, autoincrement=False, comment="key of the other columns"),
        Column("resource_type", Text, nullable=False),
        Column("element", Text, nullable=False),
        Column("system", Text, comment="NULL: text only, or a code without a system"),
        Column("code", Text),
        Column("display", Text, comment="of the coding; a text only where the site's allow-list names the type"),
        Column("text", Text, comment="of the concept, where the site's allow-list names the type"),
        Column("tried", Text, comment="what it was looked up in, and what was found"),
        Column("first_seen", DateTime(timezone=True), comment="when a resource was loaded with it"),
        Column("last_seen", DateTime(timezone=True), comment="the same, the last time"),
    )
    Table(
        "unmapped_use",
        metadata,
        Column("surrogate_id", BigInteger, nullable=False),
        Column("coding_id", BigInteger, nullable=False),
        Column("export_id", BigInteger, nullable=False, comment="that loaded the resource as it is now"),
        Column("count", BigInteger, nullable=False, comment="rows of the resource"),
        Index("unmapped_use_by_resource", "surrogate_id"),
    )


def _access_tables(metadata: MetaData) -> None:
    """Who asked a site for what, or looked at patients' lines. `access_log` takes rows only: a trigger of its revision
    refuses every change, another adds a link to the chain (docs/security.md)."""
    Table(
        "access_log",
        metadata,
        Column("id", BigInteger, primary_key=True, autoincrement=True),
        _time("at", nullable=False),
        Column("site", Text, nullable=False),
        Column("client_id", Text, comment="as registered with the site"),
        Column("run_id", Text, nullable=False, comment="of Dagster, or of the process"),
        Column("os_user", Text, nullable=False),
        Column("workflow", Text, nullable=False, comment="command or job"),
        Column("event", Text, nullable=False),
        Column("outcome", Text, nullable=False),
        Column("method", Text),
        Column("url", Text, comment="without values of the query and ids of resources"),
        Column("resource_type", Text),
        Column("status", Integer),
        Column("resources", BigInteger, comment="lines of a file, entries of a page"),
        Column("bytes", BigInteger, comment="of the body, decompressed"),
        Column("detail", Text, comment="an error code; never the words of a server"),
        Column("export_id", BigInteger, comment="where it is about one"),
        CheckConstraint("outcome IN ('ok', 'refused', 'failed', 'blocked')", name="access_log_outcome"),
        Index("access_log_by_site", "site", "at"),
    )
    Table(
        "access_link",
        metadata,
        Column("position", BigInteger, primary_key=True, autoincrement=False, comment="1, 2, 3 … without a gap"),
        Column("entry_id", BigInteger, nullable=False, comment="of access_log"),
        Column("db_user", Text, nullable=False, comment="who was logged in; empty: before there was a chain"),
        Column("hash", LargeBinary, nullable=False, comment="SHA-256 of the hash before it and of the entry"),
        UniqueConstraint("entry_id", name="access_link_entry"),
    )
    Table(
        "access_head",
        metadata,
        Column("chain_id", Uuid, primary_key=True, comment="another in every warehouse"),
        Column("position", BigInteger, nullable=False, comment="of the last link"),
        Column("hash", LargeBinary, nullable=False),
    )
    Table(
        "request_count",
        metadata,
        Column("site", Text, primary_key=True),
        Column("hour", DateTime(timezone=True), primary_key=True, comment="its beginning"),
        Column("requests", BigInteger, nullable=False, comment="sent, or set apart for a process that runs"),
    )


def _erasure_tables(metadata: MetaData) -> None:
    """Whom nothing is loaded of any more (`epic-omop erase`)."""
    Table(
        "erased_person",
        metadata,
        Column(
            "surrogate_id",
            BigInteger,
            primary_key=True,
            autoincrement=False,
            comment="of the Patient: a salted hash, no id",
        ),
        Column("site", Text, nullable=False),
        Column("erased_at", DateTime(timezone=True), nullable=False, comment="the same for all of one erasure"),
        Column("finished_at", DateTime(timezone=True), comment="NULL: it was interrupted"),
        Column("counts", JSONB, nullable=False, comment="what the whole erasure found: rows by table, lines, letters"),
        Index("erased_person_by_site", "site"),
    )


def _settings_tables(metadata: MetaData) -> None:
    """What is remembered of the settings under which sites are loaded: docs/remap.md."""
    Table(
        "remap",
        metadata,
        Column("site", Text, primary_key=True),
        Column(
            "first_export_id",
            BigInteger,
            nullable=False,
            comment="states of this export and later ones are mapped by the settings of the remap",
        ),
        Column("mark", Text, nullable=False, comment="of the settings: under others it begins anew"),
        _time("started_at", nullable=False),
        Column("finished_at", DateTime(timezone=True), comment="NULL: it was interrupted, or runs"),
    )
    Table("configured_site", metadata, Column("site", Text, primary_key=True))


def _vocabulary_tables(metadata: MetaData) -> None:
    """What rows took from the vocabulary, so that another release is compared with it: docs/decisions/0024."""
    Table(
        "vocabulary_use",
        metadata,
        Column("site", Text, nullable=False),
        Column("use_id", BigInteger, nullable=False, comment="hash of asked"),
        Column(
            "asked", Text, nullable=False, comment="JSON: [system, code] of each coding of a code set, or a mapped text"
        ),
        Column("answer", BigInteger, nullable=False, comment="hash of all that rows can take from it"),
        Column("targets", Text, nullable=False, comment="standard concepts, joined by |; empty: none"),
        PrimaryKeyConstraint("site", "use_id", name="vocabulary_use_pkey"),
    )
    Table(
        "vocabulary_state",
        metadata,
        Column("site", Text, primary_key=True),
        Column("vocabulary_release", Text, nullable=False, comment="that the site's answers are of"),
        Column("vocabulary_hash", Text, nullable=False, comment="of its content"),
        Column("local_hash", Text, nullable=False, comment="of the local map; empty: none"),
        Column("rules_hash", Text, nullable=False, comment="of code and mappings by which was asked"),
        Column("publication_hash", Text, nullable=False, comment="of concepts that publication itself asks for"),
        Column("first_export_id", BigInteger, nullable=False, comment="exports from this on left their answers"),
        _time("compared_at", nullable=False),
    )


def _coverage_table(metadata: MetaData) -> None:
    """Codes and those of them with a concept, in the rows that each export made: docs/vocabulary.md."""
    Table(
        "coverage",
        metadata,
        Column("export_id", BigInteger, primary_key=True),
        Column("site", Text, nullable=False),
        _time("published_at", nullable=False),
        Column("vocabulary_hash", Text, comment="content_hash of the release; NULL: not known"),
        Column("cdm_table", Text, primary_key=True),
        Column("resource_type", Text, primary_key=True),
        Column("element", Text, primary_key=True),
        Column("system", Text, primary_key=True, comment="empty: a code without one, a text, or nothing"),
        Column("rows", BigInteger, nullable=False, comment="that have the element"),
        Column("mapped", BigInteger, nullable=False, comment="of these, those with a concept"),
        Index("coverage_by_site", "site", "published_at"),
    )


def _check_table(metadata: MetaData) -> None:
    """Answers of checks (docs/verify.md): of each rule and table a row at every time, and one of each site with problems."""
    Table(
        "check_result",
        metadata,
        Column("check_name", Text, nullable=False),
        Column("cdm_table", Text, comment="NULL: about accounts of landed files, or a site's past"),
        Column("site", Text, comment="NULL: problems of which no site is known"),
        _time("checked_at", nullable=False),
        Column("severity", Text, nullable=False, comment="error or warn"),
        Column("problems", BigInteger, nullable=False),
        Column("detail", Text, nullable=False, comment="counts and concept ids, never a patient's data"),
        Index("check_result_by_check", "check_name", "cdm_table", "site", "checked_at"),
        Index("check_result_by_time", "checked_at"),
    )


def _local_map_table(metadata: MetaData) -> None:
    """What people decided about codes and texts, each answer with its versions: docs/vocabulary.md."""
    Table(
        "local_map",
        metadata,
        Column("id", BigInteger, primary_key=True, autoincrement=True),
        Column("site", Text, comment="NULL: of all sites"),
        Column("source_system", Text, nullable=False, comment="URI, OID or vocabulary_id; `text` of a text"),
        Column("source_code", Text, comment="NULL: the source is a text"),
        Column("source_text", Text, comment="of a concept without a code"),
        Column("source_description", Text),
        Column("source_concept_id", BigInteger, comment="NULL: what the vocabulary has for the code"),
        Column("target_concept_id", BigInteger, nullable=False, comment="in the active release; 0: reviewed, no map"),
        Column("approved_concept_id", BigInteger, comment="that the reviewer chose; NULL: target_concept_id"),
        Column("kind", Text, nullable=False, server_default=text("'to'"), comment="to, value or unit"),
        Column("equivalence", Text, comment="as Usagi has it, such as EQUAL or WIDER"),
        Column("status", Text, nullable=False, server_default=text("'unchecked'"), comment="approved ones map"),
        Column("mapping_type", Text, comment="as the file that brought it had it"),
        Column("reviewer", Text),
        _time("reviewed_at"),
        Column("comment", Text),
        Column("target_problem", Text, comment="why the active release does not let the target be used"),
        Column("version", Integer, nullable=False, server_default=text("1")),
        Column("valid_from", DateTime(timezone=True), nullable=False, server_default=_NOW),
        Column("valid_until", DateTime(timezone=True), comment="NULL: it holds"),
        Column("origin", Text, nullable=False, server_default=text("'sql'"), comment="what brought it"),
        Column("is_written", Boolean, nullable=False, server_default=text("false"), comment="to source_to_concept_map"),
        CheckConstraint("(source_code IS NULL) <> (source_text IS NULL)", name="local_map_source"),
        CheckConstraint("kind IN ('to', 'value', 'unit')", name="local_map_kind"),
        CheckConstraint("status IN ('approved', 'unchecked', 'flagged', 'ignored')", name="local_map_status"),
        Index("local_map_current", "id", postgresql_where=text("valid_until IS NULL")),
    )


def _lineage_table(metadata: MetaData, cdm_table: str) -> None:
    """Which resource made which row. `location` rows may have several resources.

    BRIN on row_id: ids rise with insertion, so it costs
    next to nothing, while a B-tree costs half of a load.
    """
    name = lineage_table_name(cdm_table)
    table = Table(
        name,
        metadata,
        *(Column(column, BigInteger, nullable=False) for column in LINEAGE_COLUMNS),
        Index(f"{name}_by_resource", "surrogate_id"),
        Index(f"{name}_by_row", "row_id", postgresql_using="brin"),
    )
    if cdm_table in CONTACT_TABLES:
        table.append_column(Column(CONTACT_DATE, Date, comment="of contact, where it is after the row's own date"))
        Index(
            f"{name}_by_contact",
            table.c.row_id,
            postgresql_include=[CONTACT_DATE],
            postgresql_where=text(f"{CONTACT_DATE} IS NOT NULL"),
        )


def view_statements(schema: str) -> list[str]:
    """CREATE OR REPLACE VIEW for the stable interface, in the order in which they can run.

    row_source(cdm_table, row_id, site, resource_type, resource_id, export_id, vocabulary_release, contact_date,
    vocabulary_hash): contact_date is that of the lineage (`CONTACT_TABLES`), NULL also where no day of contact is known; the
    hash is `vocabulary_release.content_hash`. The release is the one under which the row is right: that of the last comparison
    (`vocabulary_state`), unless the row's resource is to be mapped again;
    dead_letter_open(id, site, resource_type, resource_id, file, line, stage, code, path, reason, caused_by);
    file_account(export_id, site, file, resource_type, lines, loaded, unchanged, superseded, excluded, rejected,
    gap): `gap` is `count` where the manifest counts otherwise, `lost` or `unusable` for a file that did not come;
    exclusion(export_id, site, resource_type, reason, count);
    unmapped_code(export_id, site, resource_type, element, system, code, display, count, text, tried, first_seen, last_seen):
    codes that have no concept and for which no rule says so, as all resources are now; export_id is that of the export
    that loaded them so. `text` is kept where the site's allow-list names the type; the last two are of all sites.
    """
    lineage = "\nUNION ALL\n".join(
        f"SELECT '{table}'::text AS cdm_table, row_id, surrogate_id, export_id, {_contact_date(table)} AS contact_date"
        f" FROM {schema}.{lineage_table_name(table)}"
        for table in LINEAGE_TABLES
    )
    return [
        f"""CREATE OR REPLACE VIEW {schema}.row_source AS
        SELECT lineage.cdm_table, lineage.row_id, kind.site, kind.resource_type, state.resource_id,
               lineage.export_id, {_compared("vocabulary_release")} AS vocabulary_release, lineage.contact_date,
               {_compared("vocabulary_hash")} AS vocabulary_hash
        FROM ({lineage}) AS lineage
        JOIN {schema}.resource_state AS state USING (surrogate_id)
        JOIN {schema}.site_resource_type AS kind USING (site_resource_type_id)
        LEFT JOIN {schema}.publication AS publication ON publication.export_id = lineage.export_id
        LEFT JOIN {schema}.vocabulary_state AS compared ON compared.site = kind.site""",
        f"""CREATE OR REPLACE VIEW {schema}.dead_letter_open AS
        SELECT id, site, resource_type, resource_id, file, line, stage, code, path, reason, caused_by
        FROM {schema}.dead_letter WHERE state = 'open'""",
        f"""CREATE OR REPLACE VIEW {schema}.file_account AS
        SELECT file.export_id, job.site, file.file, file.resource_type, file.lines, file.loaded, file.unchanged,
               file.superseded, file.excluded, file.rejected, gap.reason AS gap
        FROM {schema}.export_file AS file JOIN {schema}.export_job AS job USING (export_id)
        LEFT JOIN {schema}.export_gap AS gap USING (export_id, file_number)
        WHERE file.loaded IS NOT NULL
        UNION ALL
        SELECT gap.export_id, job.site, gap.category || '/' || gap.resource_type || '.'
               || lpad(gap.file_number::text, 5, '0') || '.ndjson', gap.resource_type, 0, 0, 0, 0, 0, 0, gap.reason
        FROM {schema}.export_gap AS gap JOIN {schema}.export_job AS job USING (export_id)
        WHERE gap.reason <> 'count' AND job.published_at IS NOT NULL""",
        f"""CREATE OR REPLACE VIEW {schema}.exclusion AS
        SELECT count.export_id, job.site, count.resource_type, count.reason, sum(count.count)::bigint AS count
        FROM {schema}.exclusion_count AS count JOIN {schema}.export_job AS job USING (export_id)
        GROUP BY count.export_id, job.site, count.resource_type, count.reason""",
        f"""CREATE OR REPLACE VIEW {schema}.unmapped_code AS
        SELECT used.export_id, job.site, coding.resource_type, coding.element, coding.system, coding.code, coding.display,
               used.count, coding.text, coding.tried, coding.first_seen, coding.last_seen
        FROM (
            SELECT export_id, coding_id, sum(count)::bigint AS count FROM {schema}.unmapped_use
            GROUP BY export_id, coding_id
        ) AS used
        JOIN {schema}.unmapped_coding AS coding USING (coding_id)
        JOIN {schema}.export_job AS job USING (export_id)""",
    ]


def _compared(column: str) -> str:
    """Of the vocabulary under which a row is right."""
    return (
        f"CASE WHEN state.fingerprint <> {ANSWER_CHANGED} AND lineage.export_id >= compared.first_export_id"
        f" THEN compared.{column} ELSE publication.{column} END"
    )


def _contact_date(table: str) -> str:
    return f"nullif({CONTACT_DATE}, DATE '{NO_CONTACT}')" if table in CONTACT_TABLES else "NULL::date"
