-- Issues of deaths that are doubted, at the resources that say them.
-- reads: death_candidate chosen_death
DELETE FROM {etl}.row_issue AS issue USING pg_temp.death_candidate AS found
WHERE issue.surrogate_id = found.owner_surrogate_id AND issue.code = 'activity_after_death';
INSERT INTO {etl}.row_issue (export_id, surrogate_id, code)
SELECT state.export_id, chosen.owner_surrogate_id, 'activity_after_death'
FROM pg_temp.chosen_death AS chosen
JOIN {etl}.resource_state AS state ON state.surrogate_id = chosen.owner_surrogate_id
WHERE chosen.is_doubted;
