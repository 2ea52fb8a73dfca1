-- Of places that others are parts of, those where somebody lives. What is only a part of one keeps the fact, and is none.
-- reads: place_above
SELECT state.surrogate_id FROM pg_temp.place_above JOIN resource_state AS state USING (surrogate_id)
WHERE state.reason = %(persons_home)s AND NOT EXISTS (
    SELECT FROM reference_value AS fact WHERE fact.owner_surrogate_id = state.surrogate_id AND fact.name = %(part_of)s)
