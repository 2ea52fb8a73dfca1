-- Practitioners whom facts are about by an identifier that moved, or whose facts changed.
-- reads: moved_stand_in changed_fact former_fact changed
-- makes: user_of_key
CREATE TEMP TABLE user_of_key ON COMMIT DROP AS
WITH key AS (
    SELECT fact.surrogate_id, fact.name
    FROM pg_temp.moved_stand_in AS moved JOIN reference_value AS fact USING (surrogate_id)
    WHERE fact.name = ANY(%(names)s)
    UNION
    SELECT surrogate_id, name
    FROM pg_temp.changed_fact JOIN (
        SELECT surrogate_id, name FROM pg_temp.former_fact
        UNION
        SELECT fact.surrogate_id, fact.name
        FROM reference_value AS fact JOIN pg_temp.changed AS own ON own.surrogate_id = fact.owner_surrogate_id
        WHERE fact.name = ANY(%(names)s)
    ) AS known USING (surrogate_id, name)
    WHERE name = ANY(%(names)s)
), owner AS (
    SELECT fact.surrogate_id, fact.owner_surrogate_id
    FROM reference_value AS fact JOIN (SELECT DISTINCT surrogate_id FROM key) AS key USING (surrogate_id)
    WHERE fact.name = %(identifier)s
    UNION
    SELECT surrogate_id, owner_surrogate_id
    FROM pg_temp.former_fact AS former_fact JOIN key USING (surrogate_id)
    WHERE former_fact.name = %(identifier)s
)
SELECT DISTINCT owner.owner_surrogate_id, key.name, key.surrogate_id
FROM key JOIN owner USING (surrogate_id)
JOIN resource_state AS state ON state.surrogate_id = owner.owner_surrogate_id AND state.outcome = 'loaded'
