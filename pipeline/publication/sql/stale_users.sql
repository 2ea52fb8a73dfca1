-- References of resources that did not come, to a fact that changed.
-- reads: changed_fact changed
UPDATE reference SET state = 'stale' FROM pg_temp.changed_fact AS fact
WHERE fact.surrogate_id = reference.to_surrogate_id AND fact.name = reference.role
  AND reference.role <> ALL(%(no_facts)s)
  AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = reference.from_surrogate_id)
