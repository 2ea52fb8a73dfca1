-- Whose the judged resources are by their rows in one table.
-- reads: judged
SELECT judged.surrogate_id, person.surrogate_id AS patient
FROM pg_temp.judged JOIN {lineage} AS lineage USING (surrogate_id)
JOIN {cdm}.{table} AS row ON row.{own} = lineage.row_id
JOIN lineage_person AS person ON person.row_id = row.person_id
