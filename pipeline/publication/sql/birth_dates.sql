-- Births of which only the year is known: the day of the earliest record in that year, else 15 June (Themis), and never
-- after the death that the Patient says of that year. A person who is loaded anew has 15 June from the transform. Month and day are those of that date where the transform imputed them,
-- which it does by option.
-- reads: derived_affected
WITH born AS (
    SELECT person.person_id, person.year_of_birth, fact.owner_surrogate_id,
           make_date(person.year_of_birth, 1, 1) AS first_day, make_date(person.year_of_birth, 12, 31) AS last_day
    FROM {etl}.reference_value AS fact
    JOIN {etl}.lineage_person AS lineage ON lineage.surrogate_id = fact.owner_surrogate_id
    JOIN {cdm}.person AS person ON person.person_id = lineage.row_id
    JOIN pg_temp.derived_affected USING (person_id)
    WHERE fact.name = 'birth_year_only'
), event AS (
    SELECT person_id, visit_start_date AS event_date
    FROM {cdm}.visit_occurrence JOIN born USING (person_id) WHERE visit_start_date BETWEEN first_day AND last_day
    UNION ALL SELECT person_id, visit_detail_start_date
    FROM {cdm}.visit_detail JOIN born USING (person_id) WHERE visit_detail_start_date BETWEEN first_day AND last_day
    UNION ALL SELECT person_id, condition_start_date
    FROM {cdm}.condition_occurrence JOIN born USING (person_id)
    WHERE condition_start_date BETWEEN first_day AND last_day
    UNION ALL SELECT person_id, drug_exposure_start_date
    FROM {cdm}.drug_exposure JOIN born USING (person_id)
    WHERE drug_exposure_start_date BETWEEN first_day AND last_day
    UNION ALL SELECT person_id, procedure_date
    FROM {cdm}.procedure_occurrence JOIN born USING (person_id) WHERE procedure_date BETWEEN first_day AND last_day
    UNION ALL SELECT person_id, device_exposure_start_date
    FROM {cdm}.device_exposure JOIN born USING (person_id)
    WHERE device_exposure_start_date BETWEEN first_day AND last_day
    UNION ALL SELECT person_id, measurement_date
    FROM {cdm}.measurement JOIN born USING (person_id) WHERE measurement_date BETWEEN first_day AND last_day
    UNION ALL SELECT person_id, note_date
    FROM {cdm}.note JOIN born USING (person_id) WHERE note_date BETWEEN first_day AND last_day
    UNION ALL SELECT person_id, specimen_date
    FROM {cdm}.specimen JOIN born USING (person_id) WHERE specimen_date BETWEEN first_day AND last_day
    UNION ALL SELECT person_id, observation_date
    FROM {cdm}.observation AS observation JOIN born USING (person_id)
    WHERE observation_date BETWEEN first_day AND last_day
      -- Rows that the Patient made do not say when: their own date is derived.
      AND NOT EXISTS (
          SELECT FROM {etl}.lineage_observation AS own
          WHERE own.surrogate_id = born.owner_surrogate_id AND own.row_id = observation.observation_id
      )
), fresh AS (
    SELECT born.person_id,
           least(coalesce(min(event.event_date), make_date(born.year_of_birth, 6, 15)),
                 min(death.death_date))::timestamp AS birth_datetime
    FROM born
    LEFT JOIN event USING (person_id)
    LEFT JOIN (
        SELECT owner_surrogate_id, split_part(value, '|', 1)::date AS death_date
        FROM {etl}.reference_value WHERE name = 'patient_death'
    ) AS death ON death.owner_surrogate_id = born.owner_surrogate_id
              AND death.death_date BETWEEN born.first_day AND born.last_day
    GROUP BY born.person_id, born.year_of_birth
)
UPDATE {cdm}.person AS person
SET birth_datetime = fresh.birth_datetime,
    month_of_birth = CASE WHEN person.month_of_birth IS NOT NULL THEN extract(month FROM fresh.birth_datetime) END,
    day_of_birth = CASE WHEN person.day_of_birth IS NOT NULL THEN extract(day FROM fresh.birth_datetime) END
FROM fresh
WHERE person.person_id = fresh.person_id AND (
    person.birth_datetime IS DISTINCT FROM fresh.birth_datetime
    OR person.month_of_birth <> extract(month FROM fresh.birth_datetime)
    OR person.day_of_birth <> extract(day FROM fresh.birth_datetime))
