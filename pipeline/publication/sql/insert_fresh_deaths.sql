-- Those that are to be there in their place.
-- reads: wrong_death fresh_death
INSERT INTO {cdm}.death (person_id, death_date, death_datetime, death_type_concept_id)
SELECT person_id, death_date, death_datetime, death_type_concept_id
FROM pg_temp.fresh_death JOIN pg_temp.wrong_death USING (person_id)
