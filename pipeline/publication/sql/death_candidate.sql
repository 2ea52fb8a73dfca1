-- Everything that says of a person in scope that they died: a discharge (fact `discharge_death`, by option), the Patient or
-- one whom it replaces (fact `patient_death`), and rows of Patients that were mapped before they left such a fact.
-- reads: derived_period_person derived_merge
-- makes: death_candidate
DROP TABLE IF EXISTS pg_temp.death_candidate;
CREATE TEMP TABLE death_candidate ON COMMIT DROP AS
SELECT scope.person_id, found.is_discharge, found.owner_surrogate_id,
       split_part(found.value, '|', 1)::date AS death_date,
       nullif(split_part(found.value, '|', 2), '')::timestamp AS death_datetime,
       split_part(found.value, '|', 3)::integer AS death_type_concept_id
FROM (
    SELECT visit.person_id, true AS is_discharge, fact.owner_surrogate_id, fact.value
    FROM {etl}.reference_value AS fact
    JOIN {etl}.lineage_visit_occurrence AS lineage ON lineage.surrogate_id = fact.owner_surrogate_id
    JOIN {cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = lineage.row_id
    WHERE fact.name = 'discharge_death'
      AND split_part(fact.value, '|', 3) <> '0'  -- a type that the vocabulary lacks is no death
    UNION ALL
    SELECT lineage.row_id, false, fact.owner_surrogate_id, fact.value
    FROM {etl}.reference_value AS fact
    LEFT JOIN pg_temp.derived_merge AS merged ON merged.patient = fact.owner_surrogate_id
    JOIN {etl}.lineage_person AS lineage ON lineage.surrogate_id = coalesce(merged.last, fact.owner_surrogate_id)
    WHERE fact.name = 'patient_death'
) AS found
JOIN pg_temp.derived_period_person AS scope USING (person_id)
UNION ALL
SELECT own.person_id, false, lineage.surrogate_id, own.death_date, own.death_datetime, own.death_type_concept_id
FROM {cdm}.death AS own
JOIN pg_temp.derived_period_person AS scope USING (person_id)
JOIN {etl}.lineage_death AS lineage ON lineage.row_id = own.person_id
WHERE NOT EXISTS (
    SELECT FROM {etl}.reference_value AS fact
    WHERE fact.owner_surrogate_id = lineage.surrogate_id AND fact.name IN ('patient_death', 'discharge_death')
);
ANALYZE pg_temp.death_candidate;
