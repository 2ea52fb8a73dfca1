-- Those of the links' targets that are loaded.
-- reads: link_target
SELECT surrogate_id FROM pg_temp.link_target JOIN resource_state ON surrogate_id = next WHERE outcome = 'loaded'
