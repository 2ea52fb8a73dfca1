-- Arriving resources of which the known line may be mapped again: it is of this moment, and this is a replay or the
-- export that brought it.
-- reads: arriving_line
SELECT surrogate_id FROM pg_temp.arriving_line JOIN resource_state AS state USING (surrogate_id)
WHERE state.as_of = %(transaction_time)s AND (%(is_replay)s OR state.export_id = %(export_id)s)
