-- What vanished is excluded, and neither its line nor its content counts as unchanged.
-- reads: vanished_resource
UPDATE resource_state AS state
SET outcome = 'excluded', reason = gone.reason, raw_hash_high = 0, raw_hash_low = 0, content_hash = NULL
FROM pg_temp.vanished_resource AS gone
WHERE state.surrogate_id = gone.surrogate_id
