-- Such links wait, or do not.
-- reads: moved_link moved_{target}
UPDATE reference SET state = CASE WHEN target.row_id IS NULL THEN 'pending' ELSE 'resolved' END
FROM pg_temp.moved_link AS moved
LEFT JOIN pg_temp.moved_{target} AS target ON target.surrogate_id = moved.to_surrogate_id
WHERE moved.role = %(role)s AND reference.from_surrogate_id = moved.from_surrogate_id
  AND reference.role = moved.role AND reference.to_surrogate_id = moved.to_surrogate_id
