-- For patients who are replaced by others, and the last ones of these.
-- makes: derived_merge
DROP TABLE IF EXISTS pg_temp.derived_merge;
CREATE TEMP TABLE derived_merge (patient bigint, last bigint) ON COMMIT DROP
