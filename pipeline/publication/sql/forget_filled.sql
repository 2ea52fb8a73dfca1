-- Links of one role that wait no more.
-- reads: arrived_{target}
DELETE FROM reference USING pg_temp.arrived_{target} AS target
WHERE target.surrogate_id = to_surrogate_id AND reference.state = 'pending' AND role = %(role)s
  AND NOT {is_mapped_again}
