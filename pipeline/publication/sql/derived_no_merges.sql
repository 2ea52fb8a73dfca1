-- For patients who are replaced by others, where nobody says that there are any.
-- makes: merged_patient
CREATE TEMP TABLE merged_patient (patient bigint, last bigint) ON COMMIT DROP
