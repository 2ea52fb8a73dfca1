-- Events of patients who are not replaced any more, and have their row, follow nobody.
-- reads: merged_patient
DELETE FROM reference
WHERE role = 'person_id'
  AND NOT EXISTS (SELECT FROM pg_temp.merged_patient AS merged WHERE merged.patient = to_surrogate_id)
  AND EXISTS (SELECT FROM lineage_person AS own WHERE own.surrogate_id = to_surrogate_id)
