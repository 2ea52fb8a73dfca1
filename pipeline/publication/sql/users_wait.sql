-- Resources that did not come, whose references are stale, or wait for a fact that is there. That they are not resolved
-- is asked of all, so that the index of such references is used: most are resolved.
-- reads: waiting changed
INSERT INTO pg_temp.waiting
SELECT DISTINCT from_surrogate_id FROM reference
WHERE reference.state <> 'resolved' AND reference.role <> ALL(%(no_facts)s)
  AND (reference.state = 'stale' OR (reference.state = 'pending' AND EXISTS (
       SELECT FROM reference_value AS fact
       WHERE fact.surrogate_id = reference.to_surrogate_id AND fact.name = reference.role)))
  AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = reference.from_surrogate_id)
