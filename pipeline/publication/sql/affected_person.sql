-- For persons whose rows come from changed resources.
-- makes: affected_person
CREATE TEMP TABLE affected_person (person_id bigint PRIMARY KEY) ON COMMIT DROP
