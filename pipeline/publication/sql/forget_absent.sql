-- What the newest export of a group has is not absent from it.
-- reads: came_back
DELETE FROM absent_resource AS absent USING pg_temp.came_back AS back
WHERE absent.surrogate_id = back.surrogate_id AND absent.group_id = %(group)s
