-- The roles of the links that wait for them.
-- reads: arrived_{target}
SELECT DISTINCT role FROM reference JOIN pg_temp.arrived_{target} AS target ON target.surrogate_id = to_surrogate_id
WHERE state = 'pending' AND role = ANY(%(roles)s)
