-- Resources of one table that have a row now, or none any more.
-- reads: {resources} moved_target
INSERT INTO pg_temp.moved_target SELECT surrogate_id FROM pg_temp.{resources}
