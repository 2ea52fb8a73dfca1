-- What had vanished, and a late export has after all: its last line is to be mapped again.
-- reads: returned_resource
UPDATE resource_state AS state SET reason = %(returned)s
FROM pg_temp.returned_resource AS back
WHERE state.surrogate_id = back.surrogate_id AND state.outcome = 'excluded' AND state.reason = ANY(%(vanished)s)
