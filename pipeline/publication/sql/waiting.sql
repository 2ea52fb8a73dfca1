-- For resources that are to be mapped again.
-- makes: waiting
CREATE TEMP TABLE waiting (surrogate_id bigint) ON COMMIT DROP
