-- How many resources of some types the warehouse has of the site.
SELECT kind.resource_type, count(*)
FROM resource_state AS state JOIN site_resource_type AS kind USING (site_resource_type_id)
WHERE kind.site = %(site)s AND {state_says_something} AND kind.resource_type = ANY(%(types)s)
GROUP BY kind.resource_type ORDER BY kind.resource_type
