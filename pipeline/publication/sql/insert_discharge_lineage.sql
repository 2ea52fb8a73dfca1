-- Their lineage.
-- reads: fresh_death
INSERT INTO {etl}.lineage_death (row_id, surrogate_id, row_key, export_id)
SELECT person_id, owner_surrogate_id, 0, export_id {missing_discharge_deaths}
