-- Facts (surrogate id, name) with another value than before: what transform takes is the least. A table, because the
-- question asked for each reference would search all former facts each time.
-- reads: changed former_fact
-- makes: touched changed_fact
CREATE TEMP TABLE touched ON COMMIT DROP AS
SELECT surrogate_id FROM pg_temp.changed
UNION SELECT surrogate_id FROM pg_temp.former_fact
UNION SELECT fact.surrogate_id
      FROM reference_value AS fact JOIN pg_temp.changed AS owner ON owner.surrogate_id = fact.owner_surrogate_id;
ANALYZE pg_temp.touched;
CREATE TEMP TABLE changed_fact ON COMMIT DROP AS
SELECT surrogate_id, name
FROM (SELECT surrogate_id, name, min(value) AS value FROM pg_temp.former_fact GROUP BY surrogate_id, name) AS before
FULL JOIN (
    SELECT fact.surrogate_id, fact.name, min(fact.value) AS value
    FROM reference_value AS fact JOIN pg_temp.touched USING (surrogate_id) GROUP BY fact.surrogate_id, fact.name
) AS after USING (surrogate_id, name)
WHERE before.value IS DISTINCT FROM after.value;
ANALYZE pg_temp.changed_fact;
