-- Facts of resources that vanished, about other resources than their own: these are mapped again.
-- reads: fact_of_gone changed former_fact gone_resource user_of_gone
INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)
SELECT surrogate_id, name, owner_surrogate_id, 'stale'
FROM pg_temp.fact_of_gone JOIN pg_temp.changed USING (surrogate_id)
ON CONFLICT (from_surrogate_id, role, to_surrogate_id) DO UPDATE SET state = 'stale';
INSERT INTO pg_temp.user_of_gone
SELECT surrogate_id FROM pg_temp.fact_of_gone
UNION
SELECT fact.surrogate_id
FROM pg_temp.former_fact AS fact JOIN pg_temp.gone_resource AS gone ON gone.surrogate_id = fact.owner_surrogate_id
WHERE fact.surrogate_id <> fact.owner_surrogate_id;
