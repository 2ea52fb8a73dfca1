-- They are mapped again.
-- reads: user_of_key waiting
INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state, is_by_identifier)
SELECT owner_surrogate_id, name, surrogate_id, 'stale', true FROM pg_temp.user_of_key
ON CONFLICT (from_surrogate_id, role, to_surrogate_id) DO UPDATE SET state = 'stale';
INSERT INTO pg_temp.waiting SELECT DISTINCT owner_surrogate_id FROM pg_temp.user_of_key;
