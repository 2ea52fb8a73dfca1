-- Resources whose rows differ in a link are mapped again.
-- reads: arrived_{target}
UPDATE reference SET state = 'stale' FROM pg_temp.arrived_{target} AS target
WHERE target.surrogate_id = to_surrogate_id AND state = 'pending' AND role = %(role)s
