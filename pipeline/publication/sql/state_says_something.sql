-- Of a state: it has rows, or is excluded and others still use what it says (a Device, which is no exposure by itself), or
-- another record of its exposure counts in its place.
(state.outcome = 'loaded' OR (state.outcome = 'excluded' AND (state.reason = 'counted_elsewhere' OR EXISTS
    (SELECT FROM reference_value AS fact WHERE fact.owner_surrogate_id = state.surrogate_id))))
