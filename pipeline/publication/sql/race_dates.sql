-- Races and ethnicities of persons with several (rows of a Patient) have the date of the person's latest visit. Without a
-- visit they keep the as-of date under which they were loaded.
-- reads: derived_affected
UPDATE {cdm}.observation AS observation
SET observation_date = visit.visit_start_date, observation_datetime = visit.visit_start_datetime
FROM {etl}.reference_value AS fact
JOIN {etl}.lineage_observation AS lineage ON lineage.surrogate_id = fact.owner_surrogate_id
JOIN {cdm}.observation AS own ON own.observation_id = lineage.row_id
JOIN (
    -- Not a lateral look-up by person: in a first load the visits have no index yet.
    SELECT DISTINCT ON (person_id) person_id, visit_start_date,
           coalesce(visit_start_datetime, visit_start_date) AS visit_start_datetime
    FROM {cdm}.visit_occurrence JOIN pg_temp.derived_affected USING (person_id)
    ORDER BY 1, 2 DESC, 3 DESC
) AS visit ON visit.person_id = own.person_id
WHERE fact.name = 'race_observation' AND observation.observation_id = own.observation_id
  AND (observation.observation_date, observation.observation_datetime)
      IS DISTINCT FROM (visit.visit_start_date, visit.visit_start_datetime)
