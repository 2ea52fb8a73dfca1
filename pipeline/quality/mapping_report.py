"""How much of the source has a concept: by table, and which codes stay unmapped although the vocabulary holds them.

Asked of the warehouse and the vocabulary tables themselves, not of the concept index that the pipeline maps with: a
fault of the index is found here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import polars as pl
import psycopg

from pipeline.warehouse.copying import temporary_table

__all__ = ["CONCEPT_COLUMNS", "CodeFinding", "MappingReport", "SystemShare", "TableShare", "mapping_report"]

#: The column that says what a row of the table is.
CONCEPT_COLUMNS = {
    "person": "gender_concept_id",
    "death": "cause_concept_id",
    "visit_occurrence": "visit_concept_id",
    "visit_detail": "visit_detail_concept_id",
    "condition_occurrence": "condition_concept_id",
    "drug_exposure": "drug_concept_id",
    "procedure_occurrence": "procedure_concept_id",
    "device_exposure": "device_concept_id",
    "measurement": "measurement_concept_id",
    "observation": "observation_concept_id",
    "note": "note_class_concept_id",
    "specimen": "specimen_concept_id",
    "provider": "specialty_concept_id",
    "care_site": "place_of_service_concept_id",
    "payer_plan_period": "payer_concept_id",
}

#: defect: the vocabulary has the code and a valid Standard concept for it; no_standard: it has the code, and maps it to
#: nothing; absent: it does not have the code; system_unknown: no vocabulary is named for the code system;
#: text_only: there is no code.
Finding = Literal["defect", "no_standard", "absent", "system_unknown", "text_only"]


@dataclass(frozen=True)
class TableShare:
    table: str
    concept_column: str
    rows: int
    #: rows whose concept is neither 0 nor NULL
    mapped: int


@dataclass(frozen=True)
class CodeFinding:
    """A code that stayed unmapped in some element, how often, and why."""

    system: str | None
    vocabulary_id: str | None
    resource_type: str
    element: str
    code: str | None
    count: int
    finding: Finding


@dataclass(frozen=True)
class SystemShare:
    """The unmapped codes of one code system: how many codes, by finding, and in how many places they stand."""

    system: str | None
    vocabulary_id: str | None
    count: int
    defect: int
    no_standard: int
    absent: int


@dataclass(frozen=True)
class MappingReport:
    tables: tuple[TableShare, ...]
    codes: tuple[CodeFinding, ...]

    @property
    def defects(self) -> tuple[CodeFinding, ...]:
        return tuple(code for code in self.codes if code.finding == "defect")

    @property
    def systems(self) -> tuple[SystemShare, ...]:
        """By code system, the most frequent first."""
        grouped: dict[tuple[str | None, str | None], list[CodeFinding]] = {}
        for code in self.codes:
            grouped.setdefault((code.system, code.vocabulary_id), []).append(code)

        def codes(found: list[CodeFinding], *findings: Finding) -> int:
            return len({item.code for item in found if item.finding in findings})

        shares = [
            SystemShare(
                *key,
                sum(item.count for item in found),
                codes(found, "defect"),
                codes(found, "no_standard"),
                codes(found, "absent", "system_unknown", "text_only"),
            )
            for key, found in grouped.items()
        ]
        return tuple(sorted(shares, key=lambda share: (-share.count, share.system or "")))

    def as_json(self) -> dict[str, Any]:
        return {
            "tables": [
                {**asdict(table), "share": round(table.mapped / table.rows, 4) if table.rows else None}
                for table in self.tables
            ],
            "code_systems": [asdict(system) for system in self.systems],
            "codes": [asdict(code) for code in self.codes],
        }


def mapping_report(
    connection: psycopg.Connection,
    *,
    cdm_schema: str,
    vocab_schema: str,
    vocabulary_of: Callable[[str], str | None],
    site: str | None = None,
) -> MappingReport:
    """The report over all sites, or the codes of one. `connection` has the etl schema on its search_path.

    Codes count of the publications that were made by the same mappings and vocabulary as their site's latest.
    """
    tables = tuple(_table_share(connection, cdm_schema, *item) for item in CONCEPT_COLUMNS.items())
    return MappingReport(
        tuple(share for share in tables if share.rows), _findings(connection, vocab_schema, vocabulary_of, site)
    )


def _table_share(connection: psycopg.Connection, schema: str, table: str, column: str) -> TableShare:
    row = connection.execute(f"SELECT count(*), count(*) FILTER (WHERE {column} <> 0) FROM {schema}.{table}").fetchone()
    assert row is not None
    return TableShare(table, column, *row)


_UNMAPPED = """
SELECT resource_type, element, system, code, sum(count)::bigint FROM unmapped_code
WHERE export_id IN (
    SELECT export_id FROM (
        SELECT export_id, fingerprint, job.site,
               first_value(fingerprint) OVER (PARTITION BY job.site ORDER BY publication.published_at DESC) AS latest
        FROM publication JOIN export_job AS job USING (export_id)
    ) AS of_site
    WHERE fingerprint = latest AND (%(site)s::text IS NULL OR site = %(site)s)
)
GROUP BY resource_type, element, system, code
"""

#: Concepts of the given codes and of those that replaced them; whether any leads to a valid Standard concept.
_CLASSIFY = """
WITH RECURSIVE reached (number, concept_id) AS (
    SELECT given.number, concept.concept_id
    FROM pg_temp.given_code AS given
    JOIN {vocab}.concept ON concept.vocabulary_id = given.vocabulary_id AND given.code_key = CASE
        WHEN concept.vocabulary_id LIKE 'ICD%' THEN replace(upper(concept_code), '.', '')
        WHEN concept.vocabulary_id = 'NDC' THEN regexp_replace(concept_code, '[^0-9]', '', 'g')
        ELSE concept_code END
    UNION
    SELECT reached.number, link.concept_id_2
    FROM reached JOIN {vocab}.concept_relationship AS link ON link.concept_id_1 = reached.concept_id
    WHERE link.relationship_id = 'Concept replaced by' AND link.invalid_reason IS NULL
),
candidate (number, concept_id) AS (
    SELECT number, concept_id FROM reached
    UNION
    SELECT reached.number, link.concept_id_2
    FROM reached JOIN {vocab}.concept_relationship AS link ON link.concept_id_1 = reached.concept_id
    WHERE link.relationship_id = 'Maps to' AND link.invalid_reason IS NULL
    UNION
    SELECT given.number, local.target_concept_id
    FROM pg_temp.given_code AS given
    JOIN {vocab}.source_to_concept_map AS local
      ON local.source_vocabulary_id = given.vocabulary_id AND local.source_code = given.code
    WHERE local.invalid_reason IS NULL
)
SELECT candidate.number, coalesce(bool_or(standard_concept = 'S' AND invalid_reason IS NULL), false)
FROM candidate JOIN {vocab}.concept USING (concept_id) GROUP BY candidate.number
"""


def _findings(
    connection: psycopg.Connection, vocab_schema: str, vocabulary_of: Callable[[str], str | None], site: str | None
) -> tuple[CodeFinding, ...]:
    rows = connection.execute(_UNMAPPED, {"site": site}).fetchall()
    named = [vocabulary_of(system) if system else None for _, _, system, _, _ in rows]
    vocabularies = [name or system for name, (_, _, system, _, _) in zip(named, rows, strict=True)]
    codes = [
        (number, vocabulary, code, _key(vocabulary, code))
        for number, ((_, _, _, code, _), vocabulary) in enumerate(zip(rows, vocabularies, strict=True))
        if vocabulary and code
    ]
    schema = {"number": pl.Int64, "vocabulary_id": pl.String, "code": pl.String, "code_key": pl.String}
    temporary_table(connection, "given_code", pl.DataFrame(codes, schema=schema, orient="row"))
    by_number: dict[int, bool] = dict(connection.execute(_CLASSIFY.format(vocab=vocab_schema)).fetchall())
    connection.execute("DROP TABLE pg_temp.given_code")
    findings = [
        CodeFinding(
            system,
            named[number],
            resource_type,
            element,
            code,
            count,
            _finding(code, element, by_number.get(number), named[number] is not None),
        )
        for number, (resource_type, element, system, code, count) in enumerate(rows)
    ]
    return tuple(sorted(findings, key=lambda item: (item.finding != "defect", -item.count, item.code or "")))


#: Elements for which only concepts of one domain count (`pipeline.transform.rules.care_sites`).
_OF_ONE_DOMAIN = ("place_of_service",)


def _finding(code: str | None, element: str, has_standard: bool | None, is_known_system: bool) -> Finding:
    if code is None:
        return "text_only"
    if has_standard is None:
        return "absent" if is_known_system else "system_unknown"
    return "defect" if has_standard and element not in _OF_ONE_DOMAIN else "no_standard"


def _key(vocabulary: str, code: str) -> str:
    """The code without what spellings of it differ in."""
    if vocabulary.startswith("ICD"):
        return code.strip().upper().replace(".", "")
    if vocabulary == "NDC":
        return re.sub(r"[^0-9]", "", code)
    return code.strip()
