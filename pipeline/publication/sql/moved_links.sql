-- Links through stand-ins that stand for another row.
-- reads: moved_stand_in
-- makes: moved_link
CREATE TEMP TABLE moved_link ON COMMIT DROP AS
SELECT from_surrogate_id, role, to_surrogate_id
FROM reference JOIN pg_temp.moved_stand_in AS moved ON moved.surrogate_id = to_surrogate_id
WHERE role = ANY(%(roles)s);
ANALYZE pg_temp.moved_link;
