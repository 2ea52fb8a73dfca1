-- Known places that are parts of a home now and were not, or the other way round.
-- reads: known_part
SELECT surrogate_id FROM pg_temp.known_part AS part JOIN resource_state AS state USING (surrogate_id)
WHERE state.outcome IN ('loaded', 'excluded') AND part.is_in_home <> (state.reason IS NOT DISTINCT FROM %(persons_home)s)
