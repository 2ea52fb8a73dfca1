-- What changed resources wait for and depend on. A provider's care site comes from a role, which may have come long
-- ago: how that names it is not known here.
-- reads: new_reference identifier_key
INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state, is_by_identifier)
SELECT from_surrogate_id, role, to_surrogate_id, min(state),
       bool_or(key.surrogate_id IS NOT NULL AND role <> 'provider.care_site_id')
FROM pg_temp.new_reference LEFT JOIN pg_temp.identifier_key AS key ON key.surrogate_id = to_surrogate_id
GROUP BY from_surrogate_id, role, to_surrogate_id
ON CONFLICT DO NOTHING
