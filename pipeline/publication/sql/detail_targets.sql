-- A sub-encounter stands for its topmost parent's visit and its own detail.
SELECT map.surrogate_id, row.visit_occurrence_id, row.visit_detail_id FROM id_map AS map
JOIN {cdm}.visit_detail AS row ON row.visit_detail_id = map.row_id WHERE map.cdm_table = 'visit_detail'
