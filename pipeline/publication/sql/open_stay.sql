-- Visits whose Encounter has no period.end, and in which a patient stays: they last at least until the as-of date.
-- Whose they are is noted.
-- reads: derived_as_of_person derived_site
WITH updated AS (
    UPDATE {cdm}.visit_occurrence AS visit
    SET visit_end_date = fresh.end_date, visit_end_datetime = fresh.end_datetime
    FROM (
        SELECT visit.visit_occurrence_id,
               greatest(site.as_of, visit.visit_start_date) AS end_date,
               greatest(site.as_of::timestamp, visit.visit_start_datetime) AS end_datetime
        FROM {etl}.reference_value AS fact
        JOIN {etl}.resource_state AS state ON state.surrogate_id = fact.owner_surrogate_id
        JOIN {etl}.site_resource_type AS kind ON kind.site_resource_type_id = state.site_resource_type_id
        JOIN pg_temp.derived_site AS site ON site.site = kind.site AND site.published
        JOIN {etl}.lineage_visit_occurrence AS lineage ON lineage.surrogate_id = fact.owner_surrogate_id
        JOIN {cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = lineage.row_id
        WHERE fact.name = 'open_stay' AND visit.visit_concept_id = ANY(%(inpatient_visits)s)
    ) AS fresh
    WHERE visit.visit_occurrence_id = fresh.visit_occurrence_id
      AND (visit.visit_end_date, visit.visit_end_datetime) IS DISTINCT FROM (fresh.end_date, fresh.end_datetime)
    RETURNING visit.person_id
)
INSERT INTO pg_temp.derived_as_of_person SELECT person_id FROM updated
