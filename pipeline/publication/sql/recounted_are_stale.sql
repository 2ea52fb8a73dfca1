-- Records that count now, or no more, are to be mapped again; a process that ends before leaves that to the next run.
-- reads: recounted
INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)
SELECT surrogate_id, %(role)s, surrogate_id, 'stale' FROM pg_temp.recounted
ON CONFLICT (from_surrogate_id, role, to_surrogate_id) DO UPDATE SET state = 'stale'
