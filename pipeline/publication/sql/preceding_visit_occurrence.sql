-- The visit before, by time, among all visits of the person. Ties are broken by what the visits are, then by id.
-- reads: derived_affected
UPDATE {cdm}.visit_occurrence AS visit
SET preceding_visit_occurrence_id = fresh.preceding
FROM (
    SELECT visit_occurrence_id, lag(visit_occurrence_id) OVER (
        PARTITION BY person_id
        ORDER BY visit_start_date, coalesce(visit_start_datetime, visit_start_date), visit_end_date,
                 coalesce(visit_end_datetime, visit_end_date), visit_concept_id, visit_source_value, visit_occurrence_id
    ) AS preceding
    FROM {cdm}.visit_occurrence JOIN pg_temp.derived_affected USING (person_id)
) AS fresh
WHERE visit.visit_occurrence_id = fresh.visit_occurrence_id
  AND visit.preceding_visit_occurrence_id IS DISTINCT FROM fresh.preceding
