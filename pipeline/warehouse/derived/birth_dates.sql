-- Births of which only the year is known: the day of the earliest record in that year, else 15 June (Themis). A person
-- who is loaded anew has 15 June from the transform.
UPDATE {cdm}.person AS person
SET birth_datetime = fresh.birth_datetime
FROM (
    SELECT person.person_id,
           coalesce(min(event.event_date), make_date(person.year_of_birth, 6, 15))::timestamp AS birth_datetime
    FROM {etl}.reference_value AS fact
    JOIN {etl}.lineage_person AS lineage ON lineage.surrogate_id = fact.owner_surrogate_id
    JOIN {cdm}.person AS person ON person.person_id = lineage.row_id
    JOIN pg_temp.derived_affected USING (person_id)
    LEFT JOIN LATERAL (
        SELECT visit_start_date AS event_date FROM {cdm}.visit_occurrence WHERE person_id = person.person_id
        UNION ALL SELECT visit_detail_start_date FROM {cdm}.visit_detail WHERE person_id = person.person_id
        UNION ALL SELECT condition_start_date FROM {cdm}.condition_occurrence WHERE person_id = person.person_id
        UNION ALL SELECT drug_exposure_start_date FROM {cdm}.drug_exposure WHERE person_id = person.person_id
        UNION ALL SELECT procedure_date FROM {cdm}.procedure_occurrence WHERE person_id = person.person_id
        UNION ALL SELECT device_exposure_start_date FROM {cdm}.device_exposure WHERE person_id = person.person_id
        UNION ALL SELECT measurement_date FROM {cdm}.measurement WHERE person_id = person.person_id
        UNION ALL SELECT note_date FROM {cdm}.note WHERE person_id = person.person_id
        UNION ALL SELECT specimen_date FROM {cdm}.specimen WHERE person_id = person.person_id
        UNION ALL SELECT observation_date FROM {cdm}.observation AS observation
            -- Rows that the Patient made tell nothing of when: their own date is derived.
            WHERE person_id = person.person_id AND NOT EXISTS (
                SELECT FROM {etl}.lineage_observation AS own
                WHERE own.surrogate_id = fact.owner_surrogate_id AND own.row_id = observation.observation_id
            )
    ) AS event ON extract(year FROM event.event_date) = person.year_of_birth
    WHERE fact.name = 'birth_year_only'
    GROUP BY person.person_id, person.year_of_birth
) AS fresh
WHERE person.person_id = fresh.person_id AND person.birth_datetime IS DISTINCT FROM fresh.birth_datetime
