-- Resources whose rows differ in such a link are mapped again.
-- reads: moved_link
UPDATE reference SET state = 'stale' FROM pg_temp.moved_link AS moved
WHERE reference.from_surrogate_id = moved.from_surrogate_id AND reference.role = moved.role
  AND reference.to_surrogate_id = moved.to_surrogate_id AND moved.role = %(role)s
