-- The detail before, by time, among all visit details of the person. Ties are broken by what the details are (a
-- sub-encounter comes before its own stays), then by id.
-- reads: derived_affected
UPDATE {cdm}.visit_detail AS detail
SET preceding_visit_detail_id = fresh.preceding
FROM (
    SELECT visit_detail_id, lag(visit_detail_id) OVER (
        PARTITION BY person_id
        ORDER BY visit_detail_start_date, coalesce(visit_detail_start_datetime, visit_detail_start_date),
                 visit_detail_end_date, coalesce(visit_detail_end_datetime, visit_detail_end_date),
                 parent_visit_detail_id IS NOT NULL, visit_detail_concept_id, visit_detail_source_value, visit_detail_id
    ) AS preceding
    FROM {cdm}.visit_detail JOIN pg_temp.derived_affected USING (person_id)
) AS fresh
WHERE detail.visit_detail_id = fresh.visit_detail_id
  AND detail.preceding_visit_detail_id IS DISTINCT FROM fresh.preceding
