-- Rows of replaced patients in one table go to the survivors; whose they are by their own words is kept.
-- reads: merged_person
INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)
SELECT DISTINCT lineage.surrogate_id, 'person_id', merged.patient, 'resolved'
FROM pg_temp.merged_person AS merged JOIN {cdm}.{table} AS row USING (person_id)
JOIN {lineage} AS lineage ON lineage.row_id = row.{own}
ON CONFLICT DO NOTHING;
UPDATE {cdm}.{table} AS row SET person_id = merged.survivor_id
FROM pg_temp.merged_person AS merged WHERE row.person_id = merged.person_id;
