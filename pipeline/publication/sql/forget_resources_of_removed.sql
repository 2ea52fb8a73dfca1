-- Resources of removed persons: neither a line nor a content counts as unchanged (`pipeline.staging.known_lines`), and
-- nothing of them is kept but whose they are.
-- reads: of_removed_person
-- makes: belonged
DROP TABLE IF EXISTS pg_temp.belonged;
CREATE TEMP TABLE belonged ON COMMIT DROP AS
SELECT DISTINCT gone.surrogate_id, coalesce(moved.to_surrogate_id, gone.patient) AS patient
FROM pg_temp.of_removed_person AS gone
LEFT JOIN reference AS moved ON moved.from_surrogate_id = gone.surrogate_id AND moved.role = 'person_id';
UPDATE resource_state AS state
SET outcome = 'excluded', reason = %(person_removed)s, raw_hash_high = 0, raw_hash_low = 0, content_hash = NULL
FROM pg_temp.of_removed_person AS gone WHERE state.surrogate_id = gone.surrogate_id;
DELETE FROM reference AS row USING pg_temp.of_removed_person AS gone WHERE row.from_surrogate_id = gone.surrogate_id;
DELETE FROM reference_value AS row USING pg_temp.of_removed_person AS gone
WHERE row.owner_surrogate_id = gone.surrogate_id;
DELETE FROM row_issue AS row USING pg_temp.of_removed_person AS gone WHERE row.surrogate_id = gone.surrogate_id;
DELETE FROM unmapped_use AS row USING pg_temp.of_removed_person AS gone WHERE row.surrogate_id = gone.surrogate_id;
INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)
SELECT surrogate_id, %(person_removed)s, patient, 'pending' FROM pg_temp.belonged
ON CONFLICT DO NOTHING;
