-- The key of a table that is filled without it.
ALTER TABLE {table} DROP CONSTRAINT {key}
