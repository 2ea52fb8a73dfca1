-- Their rows in visit_detail.
-- reads: demoted sub_encounter
INSERT INTO {cdm}.visit_detail (visit_detail_id, {detail_columns}, visit_occurrence_id, parent_visit_detail_id)
SELECT map.row_id, {visit_values}, top.row_id, parent.row_id
FROM pg_temp.demoted JOIN pg_temp.sub_encounter USING (child)
JOIN lineage_visit_occurrence AS lineage ON lineage.surrogate_id = child
JOIN {cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = lineage.row_id
JOIN id_map AS map ON map.surrogate_id = child AND map.cdm_table = 'visit_detail'
JOIN id_map AS top ON top.surrogate_id = sub_encounter.top AND top.cdm_table = 'visit_occurrence'
LEFT JOIN id_map AS parent ON parent.surrogate_id = sub_encounter.parent AND parent.cdm_table = 'visit_detail'
     AND sub_encounter.parent IN (SELECT child FROM pg_temp.sub_encounter)
