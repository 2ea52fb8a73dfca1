-- Persons whose observation periods are computed where it is not known whose move with the as-of date.
-- reads: derived_affected derived_as_of_person
-- makes: derived_period_person
DROP TABLE IF EXISTS pg_temp.derived_period_person;
CREATE TEMP TABLE derived_period_person ON COMMIT DROP AS
SELECT person_id FROM pg_temp.derived_affected UNION SELECT person_id FROM pg_temp.derived_as_of_person;
ANALYZE pg_temp.derived_period_person;
