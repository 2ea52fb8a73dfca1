-- Counted, so that the states are looked up for them, and not they for all states.
-- reads: waiting
ANALYZE pg_temp.waiting
