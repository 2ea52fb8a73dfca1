-- Persons of encounters that changed sides.
-- reads: affected_person {moved}
INSERT INTO pg_temp.affected_person
SELECT DISTINCT row.person_id FROM pg_temp.{moved} AS moved
JOIN id_map AS map ON map.surrogate_id = moved.child AND map.cdm_table = '{table}'
JOIN {cdm}.{table} AS row ON row.{own} = map.row_id
ON CONFLICT DO NOTHING
