-- Those that change: what is stored of them is of their former version.
-- reads: asked_resource changed
SELECT surrogate_id FROM pg_temp.asked_resource JOIN pg_temp.changed USING (surrogate_id)
