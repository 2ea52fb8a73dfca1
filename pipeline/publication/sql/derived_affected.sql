-- Persons whose eras and visits are computed: those named and, where all are, those of the site.
-- reads: derived_named derived_person
-- makes: derived_affected
DROP TABLE IF EXISTS pg_temp.derived_affected;
CREATE TEMP TABLE derived_affected ON COMMIT DROP AS
SELECT person_id FROM pg_temp.derived_named
UNION SELECT person_id FROM pg_temp.derived_person WHERE %(everyone)s;
ANALYZE pg_temp.derived_affected;
