-- Their lineage: the resource that says so, so that they go when it changes.
-- reads: wrong_death fresh_death
INSERT INTO {etl}.lineage_death ({lineage_columns})
SELECT fresh.person_id, fresh.owner_surrogate_id, 0, state.export_id
FROM pg_temp.fresh_death AS fresh JOIN pg_temp.wrong_death USING (person_id)
JOIN {etl}.resource_state AS state ON state.surrogate_id = fresh.owner_surrogate_id
