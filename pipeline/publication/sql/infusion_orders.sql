-- Orders of which an action at a rate came, changed or went in this export.
-- reads: former_fact changed
-- makes: infusion_order
CREATE TEMP TABLE infusion_order ON COMMIT DROP AS
SELECT surrogate_id FROM pg_temp.former_fact WHERE name = 'infusion_action'
UNION
SELECT fact.surrogate_id
FROM pg_temp.changed AS owner JOIN reference_value AS fact ON fact.owner_surrogate_id = owner.surrogate_id
WHERE fact.name = 'infusion_action';
ANALYZE pg_temp.infusion_order;
