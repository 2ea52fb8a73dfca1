-- For persons of whose events the end moves with the as-of date.
-- makes: derived_as_of_person
DROP TABLE IF EXISTS pg_temp.derived_as_of_person;
CREATE TEMP TABLE derived_as_of_person (person_id bigint) ON COMMIT DROP;
