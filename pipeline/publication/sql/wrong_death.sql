-- Persons in scope whose death is not yet as it is to be, or there more than once. A death without lineage is nobody's.
-- reads: derived_period_person fresh_death
-- makes: wrong_death
DROP TABLE IF EXISTS pg_temp.wrong_death;
CREATE TEMP TABLE wrong_death ON COMMIT DROP AS
SELECT coalesce(known.person_id, fresh.person_id) AS person_id
FROM (
    SELECT own.person_id, count(*) AS rows, min(own.death_date) AS death_date, min(own.death_datetime) AS death_datetime,
           min(own.death_type_concept_id) AS death_type_concept_id, min(lineage.surrogate_id) AS owner_surrogate_id
    FROM {cdm}.death AS own
    JOIN pg_temp.derived_period_person AS scope USING (person_id)
    JOIN {etl}.lineage_death AS lineage ON lineage.row_id = own.person_id
    GROUP BY own.person_id
) AS known
FULL JOIN pg_temp.fresh_death AS fresh USING (person_id)
WHERE (known.rows, known.death_date, known.death_datetime, known.death_type_concept_id, known.owner_surrogate_id)
      IS DISTINCT FROM
      (1::bigint, fresh.death_date, fresh.death_datetime, fresh.death_type_concept_id, fresh.owner_surrogate_id);
ANALYZE pg_temp.wrong_death;
