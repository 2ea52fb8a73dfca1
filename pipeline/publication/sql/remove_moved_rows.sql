-- Rows of such events in one table; the survivors are derived again.
-- reads: of_removed_person affected_person
INSERT INTO pg_temp.affected_person
SELECT DISTINCT row.person_id
FROM {lineage} AS lineage JOIN pg_temp.of_removed_person AS gone USING (surrogate_id)
JOIN {cdm}.{table} AS row ON row.{own} = lineage.row_id
ON CONFLICT DO NOTHING;
DELETE FROM {cdm}.{table} AS row
USING {lineage} AS lineage JOIN pg_temp.of_removed_person AS gone USING (surrogate_id)
WHERE row.{own} = lineage.row_id;
