-- Changed resources of which a version is known.
-- reads: changed
-- makes: former
CREATE TEMP TABLE former ON COMMIT DROP AS
SELECT surrogate_id FROM pg_temp.changed JOIN resource_state USING (surrogate_id);
ANALYZE pg_temp.former;
