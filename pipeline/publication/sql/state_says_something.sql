-- Of a state: it has rows, or is excluded and others still use what it says (a Device, which is no exposure by itself).
(state.outcome = 'loaded' OR (state.outcome = 'excluded' AND EXISTS
    (SELECT FROM reference_value AS fact WHERE fact.owner_surrogate_id = state.surrogate_id)))
