-- Members whose panel, or who themselves, came, changed or went in this export, and the panel of each now: the least of several.
-- reads: former_fact changed
-- makes: panel_member
CREATE TEMP TABLE panel_member ON COMMIT DROP AS
SELECT touched.member, min(fact.owner_surrogate_id) AS panel
FROM (
    SELECT surrogate_id AS member FROM pg_temp.former_fact WHERE name = 'panel_member'
    UNION SELECT fact.surrogate_id FROM reference_value AS fact
    JOIN pg_temp.changed AS owner ON owner.surrogate_id = fact.owner_surrogate_id WHERE fact.name = 'panel_member'
    UNION SELECT fact.surrogate_id FROM reference_value AS fact
    JOIN pg_temp.changed AS own USING (surrogate_id) WHERE fact.name = 'panel_member'
) AS touched
LEFT JOIN reference_value AS fact ON fact.surrogate_id = touched.member AND fact.name = 'panel_member'
GROUP BY touched.member;
ANALYZE pg_temp.panel_member;
