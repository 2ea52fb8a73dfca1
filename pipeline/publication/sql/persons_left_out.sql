-- Patients of the site who are not loaded, by the reason: excluded by a rule or option, or dead letters.
SELECT reason, count(*)
FROM (
    SELECT state.reason
    FROM {etl}.resource_state AS state JOIN {etl}.site_resource_type AS kind USING (site_resource_type_id)
    WHERE kind.site = %(site)s AND kind.resource_type = 'Patient' AND state.outcome = 'excluded'
      AND state.reason <> ALL(ARRAY['deleted', 'vanished', 'left_group', 'returned'])
    UNION ALL
    SELECT letter.code
    FROM {etl}.dead_letter AS letter
    WHERE letter.state = 'open' AND letter.site = %(site)s AND letter.resource_type = 'Patient'
      AND letter.surrogate_id IS NOT NULL AND NOT EXISTS (
          SELECT FROM {etl}.lineage_person AS own WHERE own.surrogate_id = letter.surrogate_id)
) AS person
GROUP BY reason ORDER BY reason
