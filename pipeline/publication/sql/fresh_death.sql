-- The deaths that persons in scope are to have.
-- reads: chosen_death
-- makes: fresh_death
DROP TABLE IF EXISTS pg_temp.fresh_death;
CREATE TEMP TABLE fresh_death ON COMMIT DROP AS
SELECT person_id, death_date, death_datetime, death_type_concept_id, owner_surrogate_id
FROM pg_temp.chosen_death WHERE NOT (is_doubted AND drops_deaths);
ANALYZE pg_temp.fresh_death;
