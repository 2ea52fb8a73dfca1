-- The rows of replaced patients wait for nothing.
-- reads: merged_person
DELETE FROM reference USING pg_temp.merged_person AS merged
WHERE from_surrogate_id = merged.patient AND state = 'pending' AND role = ANY(%(roles)s)
