-- Resources with the surrogate id of another one.
-- reads: new_state
SELECT count(*) FROM pg_temp.new_state AS new JOIN resource_state AS old USING (surrogate_id)
WHERE (old.site_resource_type_id, old.resource_id) <> (new.site_resource_type_id, new.resource_id)
