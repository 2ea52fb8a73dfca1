-- Details of sub-encounters that are not loaded any more.
-- reads: former kept_encounter
-- makes: removed_detail
CREATE TEMP TABLE removed_detail ON COMMIT DROP AS
SELECT map.surrogate_id, map.row_id
FROM pg_temp.former JOIN id_map AS map USING (surrogate_id)
JOIN lineage_visit_detail AS lineage ON lineage.surrogate_id = map.surrogate_id AND lineage.row_id = map.row_id
WHERE map.cdm_table = 'visit_detail'
  AND NOT EXISTS (SELECT FROM pg_temp.kept_encounter AS kept WHERE kept.surrogate_id = former.surrogate_id)
