-- Stand-ins with other facts than before.
-- reads: former_fact changed moved_stand_in
INSERT INTO pg_temp.moved_stand_in
SELECT DISTINCT surrogate_id
FROM (SELECT surrogate_id, owner_surrogate_id, name, value FROM pg_temp.former_fact
      WHERE name = ANY(%(names)s)) AS before
FULL JOIN (SELECT fact.surrogate_id, fact.owner_surrogate_id, fact.name, fact.value
           FROM reference_value AS fact JOIN pg_temp.changed AS own ON own.surrogate_id = fact.owner_surrogate_id
           WHERE fact.name = ANY(%(names)s)) AS after USING (surrogate_id, owner_surrogate_id, name)
WHERE before.value IS DISTINCT FROM after.value
