-- Nobody is named as affected.
-- makes: derived_named
DROP TABLE IF EXISTS pg_temp.derived_named;
CREATE TEMP TABLE derived_named (person_id bigint) ON COMMIT DROP;
ANALYZE pg_temp.derived_named;
