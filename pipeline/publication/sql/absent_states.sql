-- Loaded resources that are absent from a group, but those that were fetched by reference and types that are exempt.
SELECT surrogate_id, kind.resource_type, 'true'
FROM (SELECT DISTINCT surrogate_id FROM absent_resource) AS absent
JOIN resource_state AS state USING (surrogate_id)
JOIN site_resource_type AS kind USING (site_resource_type_id)
WHERE kind.site = %(site)s AND {state_says_something} AND kind.resource_type <> ALL(%(exempt)s)
  AND NOT EXISTS (SELECT FROM hydrated_reference AS asked
                  WHERE asked.surrogate_id = state.surrogate_id AND asked.state = 'found')
