-- What is known of changed resources from now on.
-- reads: new_state
INSERT INTO resource_state ({columns}) SELECT {columns} FROM pg_temp.new_state
ON CONFLICT (surrogate_id) DO UPDATE SET {set_columns}
