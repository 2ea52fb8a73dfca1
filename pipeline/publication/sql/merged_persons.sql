-- Replaced patients who have a row or come in this export, with the persons of their survivors.
-- reads: merged_patient changed
-- makes: merged_person
CREATE TEMP TABLE merged_person ON COMMIT DROP AS
SELECT patient, own.row_id AS person_id, survivor.row_id AS survivor_id
FROM pg_temp.merged_patient
JOIN id_map AS own ON own.surrogate_id = patient AND own.cdm_table = 'person'
JOIN id_map AS survivor ON survivor.surrogate_id = last AND survivor.cdm_table = 'person'
WHERE EXISTS (SELECT FROM {cdm}.person AS row WHERE row.person_id = own.row_id)
   OR EXISTS (SELECT FROM pg_temp.changed WHERE changed.surrogate_id = patient)
