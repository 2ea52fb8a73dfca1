-- Places by the keys of their identifiers.
-- reads: place_above
SELECT fact.surrogate_id, fact.owner_surrogate_id
FROM pg_temp.place_above JOIN reference_value AS fact USING (surrogate_id)
WHERE fact.name = %(identifier)s
