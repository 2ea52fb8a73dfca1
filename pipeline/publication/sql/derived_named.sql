-- Persons who are named as affected in a temporary table.
-- reads: {persons}
-- makes: derived_named
DROP TABLE IF EXISTS pg_temp.derived_named;
CREATE TEMP TABLE derived_named ON COMMIT DROP AS
SELECT DISTINCT person_id FROM pg_temp.{persons};
ANALYZE pg_temp.derived_named;
