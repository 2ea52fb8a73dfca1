-- Loaded resources that did not come, and of whom another resource says something else than before.
-- reads: former_fact changed changed_fact
INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)
SELECT DISTINCT about.surrogate_id, about.name, about.owner_surrogate_id, 'stale'
FROM (
    SELECT surrogate_id, name, owner_surrogate_id FROM pg_temp.former_fact
    UNION
    SELECT fact.surrogate_id, fact.name, fact.owner_surrogate_id
    FROM reference_value AS fact JOIN pg_temp.changed AS owner ON owner.surrogate_id = fact.owner_surrogate_id
    WHERE fact.surrogate_id <> fact.owner_surrogate_id
) AS about
JOIN resource_state AS state ON state.surrogate_id = about.surrogate_id AND state.outcome = 'loaded'
WHERE about.surrogate_id <> about.owner_surrogate_id AND about.name <> ALL(%(derived_facts)s)
  AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = about.surrogate_id)
  AND EXISTS (SELECT FROM pg_temp.changed_fact AS changed
              WHERE changed.surrogate_id = about.surrogate_id AND changed.name = about.name)
ON CONFLICT (from_surrogate_id, role, to_surrogate_id) DO UPDATE SET state = 'stale'
