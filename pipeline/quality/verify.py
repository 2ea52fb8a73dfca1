"""Checks of what must always hold between landing, accounts, lineage and tables. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from omop_schema.cdm import CDM_TABLES, fields, primary_key, tables_of
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from omop_schema.exports import STATES_WITH_FILES, ExportState, sql_values
from omop_schema.versions import CdmVersion
from pipeline.core.errors import LandingError
from pipeline.landing.store import LandingStore
from pipeline.publication.accounting import ACCOUNTING_RULE, wrong_accounts
from pipeline.publication.double_counting import COUNTED_ELSEWHERE
from pipeline.warehouse.access_chain import check_chain

__all__ = ["Check", "VocabularySchemas", "verify_access_log", "verify_concepts", "verify_landing", "verify_warehouse"]


@dataclass(frozen=True)
class Check:
    """One statement about the warehouse; `problems` counts what contradicts it, `advice` says what helps where a user can."""

    name: str
    problems: int
    detail: str = ""
    advice: str = ""

    @property
    def ok(self) -> bool:
        return self.problems == 0


def verify_warehouse(connection: psycopg.Connection, cdm_schema: str) -> Iterator[Check]:
    """Accounting first, then lineage and rows table by table."""
    yield Check(f"every file: {ACCOUNTING_RULE}", len(wrong_accounts(connection)))
    yield Check(
        "every file of a published export has its account",
        _count(
            connection,
            "SELECT count(*) FROM export_file JOIN export_job USING (export_id)"
            f" WHERE export_job.state = '{ExportState.PUBLISHED}' AND loaded IS NULL",
        ),
    )
    yield Check(
        "every excluded line has its reason",
        _count(
            connection,
            "SELECT count(*) FROM (SELECT export_id, sum(excluded) AS lines FROM file_account GROUP BY export_id) AS files"
            " LEFT JOIN (SELECT export_id, sum(count) AS lines FROM exclusion GROUP BY export_id) AS reasons"
            " USING (export_id) WHERE files.lines <> coalesce(reasons.lines, 0)",
        ),
    )
    yield Check(
        "every rejected line of the latest exports has its dead letter",
        _count(
            connection,
            "SELECT count(*) FROM export_file AS file WHERE rejected > 0 AND NOT EXISTS (SELECT FROM dead_letter"
            " AS letter WHERE letter.export_id >= file.export_id)",
        ),
    )
    yield from _double_counting(connection)
    for table in LINEAGE_TABLES:
        yield from _table_checks(connection, cdm_schema, table)


def _double_counting(connection: psycopg.Connection) -> Iterator[Check]:
    yield Check(
        "records of one order count once",
        _count(
            connection,
            "SELECT count(*) FROM medication_record AS one JOIN medication_record AS other"
            " USING (link, linked_surrogate_id, cdm_table) WHERE link = 'order' AND one.precedence < other.precedence"
            " AND one.counts AND other.counts",
        ),
    )
    row = "SELECT FROM {} AS lineage WHERE lineage.surrogate_id = record.surrogate_id"
    rows = " ".join(f"WHEN '{table}' THEN EXISTS ({row.format(lineage_table_name(table))})" for table in LINEAGE_TABLES)
    yield Check(
        "records of medications: what counts has its row, and what is counted elsewhere has none",
        _count(
            connection,
            f"SELECT count(*) FROM medication_record AS record WHERE counts IS DISTINCT FROM CASE cdm_table {rows} END"
            " AND NOT EXISTS (SELECT FROM reference WHERE from_surrogate_id = record.surrogate_id"  # is to be mapped again
            f" AND role = '{COUNTED_ELSEWHERE}' AND state = 'stale')",
        ),
    )


def verify_concepts(connection: psycopg.Connection, schemas: VocabularySchemas) -> Iterator[Check]:
    """Every concept id of a row is in the active vocabulary release, and valid in it unless it is what the source said; every
    site was compared with that release. Reads each column once: its distinct ids are looked up."""
    for table in schemas.tables:
        names = [field.name for field in fields(table, schemas.version)]
        columns = [name for name in names if name.endswith("_concept_id") and name != _OF_THE_CDM]
        if not columns:
            continue
        found: dict[str, list[str]] = {"missing": [], "invalid": []}
        for column in columns:
            for concept_id, rows, is_there in _wrong_concepts(connection, schemas, table, column):
                found["invalid" if is_there else "missing"].append(f"{column} {concept_id} in {rows:,} rows")
        yield Check(
            f"{table}: every concept is in the active vocabulary, and valid",
            len(found["missing"]) + len(found["invalid"]),
            "; ".join(
                f"{kind}: {', '.join(ids[:_MOST_CONCEPTS])}{' …' if len(ids) > _MOST_CONCEPTS else ''}"
                for kind, ids in found.items()
                if ids
            ),
            "`epic-omop remap` maps what another vocabulary release has changed; it says before what that is with --dry-run.",
        )
    releases = connection.execute(
        "SELECT DISTINCT vocabulary_release || ' (' || left(vocabulary_hash, 8) || ')' FROM vocabulary_state ORDER BY 1"
    ).fetchall()
    yield Check(
        "all sites were compared with one vocabulary release",
        max(len(releases) - 1, 0),
        ", ".join(name for (name,) in releases) if len(releases) > 1 else "",
        "`epic-omop remap` compares every site with the active release.",
    )


#: The CDM's own version in `cdm_source`: by its documentation, whatever is loaded.
_OF_THE_CDM = "cdm_version_concept_id"
#: Concept ids that are named of a table.
_MOST_CONCEPTS = 5


@dataclass(frozen=True)
class VocabularySchemas:
    """Where concepts are, and where they are looked for."""

    cdm: str
    vocab: str
    version: CdmVersion

    @property
    def tables(self) -> list[str]:
        return [table for table in CDM_TABLES if table in tables_of(self.version)]


def _wrong_concepts(
    connection: psycopg.Connection, schemas: VocabularySchemas, table: str, column: str
) -> list[tuple[int, int, bool]]:
    """Concept ids of a column that the vocabulary does not have, or has no longer: id, rows, whether it has them. What the
    source said may be out of date. 0 is no concept."""
    is_of_source = column.endswith("_source_concept_id")
    invalid = "false" if is_of_source else "concept.invalid_reason IS NOT NULL"
    return connection.execute(
        f"SELECT used.concept_id, used.rows, concept.concept_id IS NOT NULL FROM (SELECT {column} AS concept_id,"
        f" count(*) AS rows FROM {schemas.cdm}.{table} WHERE {column} <> 0 GROUP BY 1) AS used"
        f" LEFT JOIN {schemas.vocab}.concept AS concept USING (concept_id)"
        f" WHERE concept.concept_id IS NULL OR {invalid} ORDER BY used.rows DESC, used.concept_id"
    ).fetchall()


def _table_checks(connection: psycopg.Connection, cdm_schema: str, table: str) -> Iterator[Check]:
    own, lineage = primary_key(table) or "person_id", lineage_table_name(table)
    yield Check(
        f"{table}: every row has its source",
        _count(
            connection,
            f"SELECT count(*) FROM {cdm_schema}.{table} AS row"
            f" WHERE NOT EXISTS (SELECT FROM {lineage} AS lineage WHERE lineage.row_id = row.{own})",
        ),
    )
    yield Check(
        f"{table}: every source has its row, and a loaded resource",
        _count(
            connection,
            f"SELECT count(*) FROM {lineage} AS lineage LEFT JOIN {cdm_schema}.{table} AS row ON row.{own} = lineage.row_id"
            " LEFT JOIN resource_state AS state USING (surrogate_id)"
            f" WHERE row.{own} IS NULL OR state.outcome IS DISTINCT FROM 'loaded'",
        ),
    )


def verify_access_log(connection: psycopg.Connection, home: Path) -> Check:
    """The chain of the access log, against the anchor of the last time too (`pipeline.warehouse.access_chain`)."""
    state = check_chain(connection, home)
    return Check("the access log is whole", len(state.problems), "; ".join(state.problems))


def verify_landing(connection: psycopg.Connection, landing: LandingStore) -> Iterator[Check]:
    """Read every landed file of published exports again and compare its SHA-256."""
    exports = connection.execute(
        f"SELECT site, export_id, pruned_at IS NOT NULL FROM export_job WHERE state IN {sql_values(STATES_WITH_FILES)}"
        " ORDER BY export_id"
    ).fetchall()
    for site, export_id, is_pruned in exports:
        if is_pruned and not landing.is_finished(site, export_id):
            continue  # nothing of it was needed
        try:
            landing.open(site, export_id, verify=True)
            yield Check(f"landing of export {export_id} ({site}) is as it came", 0)
        except LandingError as error:
            advice = (
                "Restore that file from a backup. Where there is none, export again (`epic-omop run --site"
                f" {site}`), then `epic-omop export forget --site {site} --export {export_id}`: other exports are loaded in"
                " its place, and `epic-omop landing prune` removes it in time."
            )
            yield Check(f"landing of export {export_id} ({site}) is as it came", 1, error.message, advice)


def _count(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
