-- For the resources of removed persons.
-- makes: of_removed_person
DROP TABLE IF EXISTS pg_temp.of_removed_person;
CREATE TEMP TABLE of_removed_person (surrogate_id bigint, patient bigint) ON COMMIT DROP;
