-- Arriving resources of which a newer line is known.
-- reads: arriving_line
SELECT surrogate_id FROM pg_temp.arriving_line JOIN resource_state AS state USING (surrogate_id)
WHERE state.as_of > %(transaction_time)s
