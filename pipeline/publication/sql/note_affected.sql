-- Persons of the changed resources' rows in one table.
-- reads: changed affected_person
INSERT INTO pg_temp.affected_person
SELECT DISTINCT row.person_id
FROM pg_temp.changed AS resource JOIN {etl}.{lineage} AS lineage USING (surrogate_id)
JOIN {cdm}.{table} AS row ON row.{own} = lineage.row_id
ON CONFLICT DO NOTHING
