-- Visits of the results' rows in one table, for specimen_visits: those of the specimen's own person.
-- reads: specimen_result
SELECT named.specimen_id, row.visit_occurrence_id, row.visit_detail_id
FROM pg_temp.specimen_result AS named JOIN {etl}.{lineage} AS lineage ON lineage.surrogate_id = named.result
JOIN {cdm}.{table} AS row ON row.{own} = lineage.row_id AND row.person_id = named.person_id
JOIN {cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = row.visit_occurrence_id
AND visit.person_id = named.person_id
