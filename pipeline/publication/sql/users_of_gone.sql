-- What uses facts of resources that vanished.
-- reads: gone_resource
-- makes: user_of_gone
CREATE TEMP TABLE user_of_gone ON COMMIT DROP AS
SELECT DISTINCT from_surrogate_id AS surrogate_id
FROM reference JOIN pg_temp.gone_resource AS gone ON gone.surrogate_id = to_surrogate_id
WHERE role <> ALL(%(no_facts)s) AND state = 'resolved';
UPDATE reference SET state = 'stale'
FROM pg_temp.gone_resource AS gone
WHERE gone.surrogate_id = to_surrogate_id AND role <> ALL(%(no_facts)s) AND state = 'resolved';
