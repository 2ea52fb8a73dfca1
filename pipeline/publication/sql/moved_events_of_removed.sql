-- Events of removed patients that are with their survivors.
-- reads: removed_patient
-- makes: of_removed_person
DROP TABLE IF EXISTS pg_temp.of_removed_person;
CREATE TEMP TABLE of_removed_person ON COMMIT DROP AS
SELECT from_surrogate_id AS surrogate_id, to_surrogate_id AS patient
FROM reference JOIN pg_temp.removed_patient AS patient ON patient.surrogate_id = to_surrogate_id
WHERE role = 'person_id';
