-- Where the last lines of resources lie whose rows were removed for a reason that is over: late exports of a group
-- have them; their removed person is there again, or follows another one; whom their patient followed is gone.
-- reads: followed changed
SELECT {landed_line}
FROM (SELECT surrogate_id FROM resource_state WHERE reason = 'returned') AS back
JOIN resource_state AS state USING (surrogate_id) JOIN site_resource_type AS kind USING (site_resource_type_id)
WHERE kind.site = %(site)s AND state.outcome = 'excluded'
UNION
SELECT {landed_line}
FROM (SELECT from_surrogate_id AS surrogate_id, to_surrogate_id FROM reference
      WHERE state = 'pending' AND role = %(person_removed)s) AS waiting
JOIN resource_state AS state USING (surrogate_id) JOIN site_resource_type AS kind USING (site_resource_type_id)
WHERE kind.site = %(site)s AND state.outcome = 'excluded' AND state.reason = %(person_removed)s
  AND (EXISTS (SELECT FROM lineage_person AS own WHERE own.surrogate_id = waiting.to_surrogate_id)
       OR EXISTS (SELECT FROM pg_temp.followed WHERE followed.patient = waiting.to_surrogate_id))
  AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = state.surrogate_id)
UNION
SELECT {landed_line}
FROM (SELECT owner_surrogate_id AS surrogate_id FROM reference_value WHERE name = 'replaced_by') AS follower
JOIN resource_state AS state USING (surrogate_id) JOIN site_resource_type AS kind USING (site_resource_type_id)
WHERE kind.site = %(site)s AND kind.resource_type = 'Patient' AND state.outcome = 'loaded'
  AND NOT EXISTS (SELECT FROM lineage_person AS own WHERE own.surrogate_id = state.surrogate_id)
  AND NOT EXISTS (SELECT FROM pg_temp.followed WHERE followed.patient = state.surrogate_id)
  AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = state.surrogate_id)
