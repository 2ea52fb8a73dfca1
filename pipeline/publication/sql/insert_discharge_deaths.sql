-- Their rows.
-- reads: fresh_death
INSERT INTO {cdm}.death (person_id, death_date, death_datetime, death_type_concept_id)
SELECT person_id, death_date, death_datetime, death_type_concept_id {missing_discharge_deaths}
