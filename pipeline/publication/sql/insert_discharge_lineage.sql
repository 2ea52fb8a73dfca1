-- Their lineage.
-- reads: fresh_death
INSERT INTO {etl}.lineage_death ({lineage_columns})
SELECT person_id, owner_surrogate_id, 0, export_id {missing_discharge_deaths}
