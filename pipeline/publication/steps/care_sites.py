"""fact_relationship: which care site is a part of which, by `partOf` of Organization and Location.

The rows follow from the facts `site_part_of` and are compared as a whole: care sites are few.
"""

from __future__ import annotations

import polars as pl

from pipeline.publication.context import Publication
from pipeline.publication.steps.stand_ins import resolved
from pipeline.warehouse.copying import read_frame, temporary_table

__all__ = ["relate_care_sites"]

#: Concepts: domain Care site; is part of; contains. One that the vocabulary lacks is 0.
_DOMAIN, _PART_OF, _CONTAINS = 57, 46233688, 46233689


def relate_care_sites(p: Publication) -> None:
    """Bring the rows between care sites in line with the facts, in both directions; equal rows are not touched."""
    domain, part_of, contains = (
        p.count(f"SELECT count(*) FROM {p.vocab}.concept WHERE concept_id = {concept}") * concept
        for concept in (_DOMAIN, _PART_OF, _CONTAINS)
    )
    table = f"{p.cdm}.fact_relationship"
    named = read_frame(
        p.connection, "SELECT DISTINCT value FROM reference_value WHERE name = 'site_part_of'", {"value": pl.Int64}
    )
    temporary_table(p.connection, "site_stand_in", resolved(p, named["value"]))
    p.connection.execute(
        "CREATE TEMP TABLE site_relation ON COMMIT DROP AS WITH pair AS ("
        " SELECT DISTINCT child.row_id AS part, parent.row_id AS whole FROM reference_value AS fact"
        " JOIN lineage_care_site AS child USING (surrogate_id)"
        " LEFT JOIN pg_temp.site_stand_in AS stand_in ON stand_in.surrogate_id = fact.value::bigint"
        " JOIN lineage_care_site AS parent ON parent.surrogate_id = coalesce(stand_in.target, fact.value::bigint)"
        " WHERE fact.name = 'site_part_of')"
        f" SELECT part AS one, whole AS other, {part_of} AS concept_id FROM pair"
        f" UNION SELECT whole, part, {contains} FROM pair"
    )
    same = (
        f"row.domain_concept_id_1 = {domain} AND row.domain_concept_id_2 = {domain} AND row.fact_id_1 = relation.one"
        " AND row.fact_id_2 = relation.other AND row.relationship_concept_id = relation.concept_id"
    )
    deleted = p.connection.execute(
        f"DELETE FROM {table} AS row WHERE domain_concept_id_1 = {domain} AND domain_concept_id_2 = {domain}"
        f" AND NOT EXISTS (SELECT FROM pg_temp.site_relation AS relation WHERE {same})"
    )
    inserted = p.connection.execute(
        f"INSERT INTO {table} (domain_concept_id_1, fact_id_1, domain_concept_id_2, fact_id_2, relationship_concept_id)"
        f" SELECT {domain}, one, {domain}, other, concept_id FROM pg_temp.site_relation AS relation"
        f" WHERE NOT EXISTS (SELECT FROM {table} AS row WHERE {same}) ORDER BY one, other"
    )
    p.report.rows_deleted["fact_relationship"] += deleted.rowcount
    p.report.rows_inserted["fact_relationship"] += inserted.rowcount
