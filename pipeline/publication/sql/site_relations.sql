-- Which care site is a part of which, in both directions.
-- reads: site_stand_in
-- makes: site_relation
CREATE TEMP TABLE site_relation ON COMMIT DROP AS
WITH pair AS (
    SELECT DISTINCT child.row_id AS part, parent.row_id AS whole
    FROM reference_value AS fact JOIN lineage_care_site AS child USING (surrogate_id)
    LEFT JOIN pg_temp.site_stand_in AS stand_in ON stand_in.surrogate_id = fact.value::bigint
    JOIN lineage_care_site AS parent ON parent.surrogate_id = coalesce(stand_in.target, fact.value::bigint)
    WHERE fact.name = 'site_part_of'
)
SELECT part AS one, whole AS other, {part_of} AS concept_id FROM pair
UNION SELECT whole, part, {contains} FROM pair
