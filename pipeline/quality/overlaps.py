"""Exposures that may be one in two records: nothing names the other, and both count. Counts only, no patient's data.

What records of one order say is decided by publication (`pipeline.publication.double_counting`). What is left are records
of the same person and ingredient that share a day: an order and what was given, where nothing says that they belong
together. Nobody but the site knows, so that they are counted and stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg

from pipeline.publication.double_counting import PRECEDENCE

__all__ = ["overlap_sentence", "overlapping_exposures"]

#: By two sums over the days of each person and ingredient, instead of each exposure compared with each: more of the better
#: records have begun by the last day of an exposure than ended before its first. `place`: what is asked on a day
#: comes after what begins on it.
_OVERLAPS = """
WITH exposure AS (
    SELECT row.drug_exposure_id, row.person_id, row.drug_concept_id, kind.resource_type, rank.precedence,
           drug_exposure_start_date AS first_day,
           greatest(coalesce(drug_exposure_end_date, drug_exposure_start_date), drug_exposure_start_date) AS last_day
    FROM {cdm}.drug_exposure AS row {of_persons}
    JOIN lineage_drug_exposure AS lineage ON lineage.row_id = row.drug_exposure_id
    JOIN resource_state AS state USING (surrogate_id)
    JOIN site_resource_type AS kind USING (site_resource_type_id)
    JOIN unnest(%(types)s::text[], %(precedences)s::integer[]) AS rank (resource_type, precedence)
         ON rank.resource_type = kind.resource_type
    WHERE row.drug_concept_id <> 0
), ingredient AS (
    SELECT drug.drug_concept_id, ancestor.ancestor_concept_id AS substance
    FROM (SELECT DISTINCT drug_concept_id FROM exposure) AS drug
    JOIN {vocab}.concept_ancestor AS ancestor ON ancestor.descendant_concept_id = drug.drug_concept_id
    JOIN {vocab}.concept AS concept ON concept.concept_id = ancestor.ancestor_concept_id
    WHERE concept.concept_class_id = 'Ingredient' AND concept.standard_concept = 'S'
      AND concept.vocabulary_id IN ('RxNorm', 'RxNorm Extension')
), of_substance AS (
    SELECT exposure.*, coalesce(substance, exposure.drug_concept_id) AS substance
    FROM exposure LEFT JOIN ingredient USING (drug_concept_id)
), event AS (
    SELECT person_id, substance, precedence, first_day AS day, 0 AS place, 1 AS begins, 0 AS ends, NULL::bigint AS asked
    FROM of_substance WHERE precedence < %(last)s
    UNION ALL
    SELECT person_id, substance, precedence, last_day + 1, 0, 0, 1, NULL FROM of_substance WHERE precedence < %(last)s
    UNION ALL
    SELECT person_id, substance, precedence, day, place, 0, 0, drug_exposure_id
    FROM of_substance CROSS JOIN LATERAL (VALUES (first_day, 1), (last_day, 2)) AS days (day, place)
    WHERE precedence > 1
), counted AS (
    SELECT person_id, substance, precedence, place, asked,
           CASE precedence WHEN 2 THEN sum(begins) FILTER (WHERE precedence < 2) OVER days
                           ELSE sum(begins) OVER days END AS begun,
           CASE precedence WHEN 2 THEN sum(ends) FILTER (WHERE precedence < 2) OVER days
                           ELSE sum(ends) OVER days END AS ended
    FROM event WINDOW days AS (PARTITION BY person_id, substance ORDER BY day, place)
), shared AS (
    SELECT DISTINCT asked FROM (
        SELECT person_id, substance, asked FROM counted WHERE asked IS NOT NULL GROUP BY person_id, substance, asked
        HAVING coalesce(max(begun) FILTER (WHERE place = 2), 0) > coalesce(max(ended) FILTER (WHERE place = 1), 0)
    ) AS of_ingredient
)
SELECT resource_type, count(*)::bigint FROM shared JOIN exposure ON drug_exposure_id = asked
GROUP BY resource_type ORDER BY resource_type
"""

_OF_EXPORTS = """JOIN (
        SELECT DISTINCT person_id FROM {cdm}.drug_exposure JOIN lineage_drug_exposure ON row_id = drug_exposure_id
        WHERE export_id = ANY(%(exports)s)
    ) AS touched USING (person_id)"""


def overlapping_exposures(
    connection: psycopg.Connection, cdm_schema: str, vocab_schema: str, export_ids: Sequence[int] | None = None
) -> dict[str, int]:
    """Resource type → rows of drug_exposure that share a day with a more definite one of the same person and ingredient.

    `export_ids`: only of persons with an exposure that these exports made; else of all, which reads the whole table.
    `connection` has the etl schema on its search_path.
    """
    of_persons = "" if export_ids is None else _OF_EXPORTS.format(cdm=cdm_schema)
    rows = connection.execute(
        _OVERLAPS.format(cdm=cdm_schema, vocab=vocab_schema, of_persons=of_persons),
        {
            "types": list(PRECEDENCE),
            "precedences": list(PRECEDENCE.values()),
            "last": max(PRECEDENCE.values()),
            "exports": list(export_ids or ()),
        },
    ).fetchall()
    return dict(rows)


def overlap_sentence(overlaps: Mapping[str, int]) -> str:
    """For people; empty where nothing overlaps."""
    if not overlaps:
        return ""
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(overlaps.items()))
    return (
        "Exposures that share a day with a more definite record of the same person and ingredient, which does not name"
        f" their order, and count beside it: {counts}. The option double_counting (docs/mapping.md) says what can be done."
    )
