-- Loaded details, not of this export, that are parts of no other encounter any more.
-- reads: sub_encounter changed
SELECT lineage.surrogate_id
FROM id_map AS map
JOIN lineage_visit_detail AS lineage ON lineage.surrogate_id = map.surrogate_id AND lineage.row_id = map.row_id
WHERE map.cdm_table = 'visit_detail'
  AND NOT EXISTS (SELECT FROM pg_temp.sub_encounter WHERE child = map.surrogate_id)
  AND NOT EXISTS (SELECT FROM pg_temp.changed WHERE changed.surrogate_id = map.surrogate_id)
