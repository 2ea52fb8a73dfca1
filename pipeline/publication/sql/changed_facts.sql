-- Facts (surrogate id, name) with another value than before: what transform takes is the least. What others say of the same
-- resource counts in both, and only under the same name. A table, because the question asked for each reference would
-- search all former facts each time.
-- reads: changed former_fact
-- makes: touched changed_fact
CREATE TEMP TABLE touched ON COMMIT DROP AS
SELECT surrogate_id, name FROM pg_temp.former_fact
UNION SELECT fact.surrogate_id, fact.name
      FROM reference_value AS fact JOIN pg_temp.changed AS owner ON owner.surrogate_id = fact.owner_surrogate_id;
ANALYZE pg_temp.touched;
CREATE TEMP TABLE changed_fact ON COMMIT DROP AS
SELECT surrogate_id, name
FROM (
    SELECT surrogate_id, name, value, true AS is_former, false AS is_current FROM pg_temp.former_fact
    UNION ALL
    SELECT fact.surrogate_id, fact.name, fact.value, owner.surrogate_id IS NULL, true
    FROM reference_value AS fact JOIN pg_temp.touched USING (surrogate_id, name)
    LEFT JOIN (SELECT DISTINCT surrogate_id FROM pg_temp.changed) AS owner
    ON owner.surrogate_id = fact.owner_surrogate_id
) AS fact
GROUP BY surrogate_id, name
HAVING min(value) FILTER (WHERE is_former) IS DISTINCT FROM min(value) FILTER (WHERE is_current);
ANALYZE pg_temp.changed_fact;
