-- Deaths that only a discharge reports (fact `discharge_death` about the Patient, by option): the earliest of a person.
-- A person with a death of the Patient's own has none of these.
-- reads: derived_affected
-- makes: fresh_death
DROP TABLE IF EXISTS pg_temp.fresh_death;
CREATE TEMP TABLE fresh_death ON COMMIT DROP AS
SELECT DISTINCT ON (affected.person_id)
       affected.person_id,
       split_part(fact.value, '|', 1)::date AS death_date,
       split_part(fact.value, '|', 2)::timestamp AS death_datetime,
       split_part(fact.value, '|', 3)::integer AS death_type_concept_id,
       fact.owner_surrogate_id,
       state.export_id
FROM {etl}.reference_value AS fact
JOIN {etl}.resource_state AS state ON state.surrogate_id = fact.owner_surrogate_id
JOIN {etl}.lineage_visit_occurrence AS lineage ON lineage.surrogate_id = fact.owner_surrogate_id
JOIN {cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = lineage.row_id
JOIN pg_temp.derived_affected AS affected ON affected.person_id = visit.person_id
WHERE fact.name = 'discharge_death'
  AND split_part(fact.value, '|', 3) <> '0'  -- a type that the vocabulary lacks may be the Patient's
  AND NOT EXISTS (
      SELECT FROM {cdm}.death AS own JOIN {etl}.lineage_death AS lineage ON lineage.row_id = own.person_id
      WHERE own.person_id = affected.person_id AND NOT EXISTS (
          SELECT FROM {etl}.reference_value AS other
          WHERE other.name = 'discharge_death' AND other.owner_surrogate_id = lineage.surrogate_id
      )
  )
ORDER BY affected.person_id, death_date, death_datetime, fact.owner_surrogate_id;
ANALYZE pg_temp.fresh_death;
