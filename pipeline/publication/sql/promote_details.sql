-- Their rows in visit_occurrence.
-- reads: promoted
INSERT INTO {cdm}.visit_occurrence (visit_occurrence_id, {visit_columns})
SELECT map.row_id, {detail_values} FROM pg_temp.promoted
JOIN id_map AS own ON own.surrogate_id = child AND own.cdm_table = 'visit_detail'
JOIN {cdm}.visit_detail AS detail ON detail.visit_detail_id = own.row_id
JOIN id_map AS map ON map.surrogate_id = child AND map.cdm_table = 'visit_occurrence'
