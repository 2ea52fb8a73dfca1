"""Rules about concept ids: they are in the active vocabulary release, and all sites were compared with one release."""

from __future__ import annotations

import psycopg

from omop_schema.cdm import CDM_TABLES, fields, tables_of
from omop_schema.versions import CdmVersion
from pipeline.quality.checks.model import Finding, Rule, Schemas, Severity

__all__ = ["CONCEPTS_VALID", "ONE_RELEASE", "concept_finding", "concept_rules"]

CONCEPTS_VALID = "concepts_valid"
#: The CDM's own version in `cdm_source`: by its documentation, whatever is loaded.
_OF_THE_CDM = "cdm_version_concept_id"
#: Concept ids that are named of a table.
_MOST_CONCEPTS = 5

ONE_RELEASE = Rule(
    "one_vocabulary_release",
    "all sites were compared with one vocabulary release",
    "SELECT NULL::text, count(DISTINCT (vocabulary_release, vocabulary_hash)) - 1 FROM vocabulary_state"
    " HAVING count(DISTINCT (vocabulary_release, vocabulary_hash)) > 1",
    severity=Severity.WARN,
    advice="`epic-omop remap` compares every site with the active release.",
)


def concept_rules(version: CdmVersion) -> tuple[Rule, ...]:
    """One of every table that has concept ids."""
    return tuple(
        Rule(
            CONCEPTS_VALID,
            "every concept is in the active vocabulary, and valid",
            "",
            table,
            Severity.WARN,
            "`epic-omop remap` maps what another vocabulary release has changed; it says before what that is with --dry-run.",
        )
        for table in CDM_TABLES
        if table in tables_of(version) and _columns(table, version)
    )


def concept_finding(connection: psycopg.Connection, schemas: Schemas, rule: Rule) -> Finding:
    """Every concept id of a table's rows is in the active release, and valid in it unless it is what the source said. Reads
    each column once: its distinct ids are looked up."""
    table = rule.cdm_table or ""
    found: dict[str, list[str]] = {"missing": [], "invalid": []}
    for column in _columns(table, schemas.version):
        for concept_id, rows, is_there in _wrong_concepts(connection, schemas, table, column):
            found["invalid" if is_there else "missing"].append(f"{column} {concept_id} in {rows:,} rows")
    detail = "; ".join(
        f"{kind}: {', '.join(ids[:_MOST_CONCEPTS])}{' …' if len(ids) > _MOST_CONCEPTS else ''}"
        for kind, ids in found.items()
        if ids
    )
    problems = sum(map(len, found.values()))
    return Finding(rule, {None: problems} if problems else {}, detail)


def _columns(table: str, version: CdmVersion) -> list[str]:
    names = [field.name for field in fields(table, version)]
    return [name for name in names if name.endswith("_concept_id") and name != _OF_THE_CDM]


def _wrong_concepts(
    connection: psycopg.Connection, schemas: Schemas, table: str, column: str
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
