-- The replaced patients' own rows in person or death.
-- reads: merged_person
DELETE FROM {lineage} AS lineage USING pg_temp.merged_person AS merged WHERE lineage.surrogate_id = merged.patient;
DELETE FROM {cdm}.{table} AS row USING pg_temp.merged_person AS merged WHERE row.person_id = merged.person_id;
