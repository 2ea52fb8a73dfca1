-- Where the last lines of the resources that wait lie.
-- reads: waiting
SELECT DISTINCT {landed_line}
FROM pg_temp.waiting JOIN resource_state AS state USING (surrogate_id)
JOIN site_resource_type AS kind USING (site_resource_type_id)
WHERE state.outcome IN ('loaded', 'excluded') AND kind.site = %(site)s
