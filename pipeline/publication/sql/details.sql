-- The details of sub-encounters, with their visits.
-- reads: sub_encounter
SELECT map.surrogate_id, map.row_id, detail.visit_occurrence_id
FROM pg_temp.sub_encounter AS child
JOIN id_map AS map ON map.surrogate_id = child.child AND map.cdm_table = 'visit_detail'
JOIN {cdm}.visit_detail AS detail ON detail.visit_detail_id = map.row_id
